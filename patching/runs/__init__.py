"""An experiment from config to finished run folder."""
