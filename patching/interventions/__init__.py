"""What a patched run is: sites, sources, knocked-out edges, cells."""
