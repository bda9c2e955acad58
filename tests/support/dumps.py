"""A file of decoded latents, as the original CODI code writes it."""

DUMP = r"""Question0...
A hen lays 16 eggs...
She eats three and bakes with four; the rest sells at $2. How much is that?...
CoT=<<16-3-4=9>> <<9*2=18>>, Answer=18.0
decoded 0th latent (top5): [' 13', '13', ' 12', ' 11', '12']
decoded 1th latent (top5): ['-', ' than', '\n', '->', '>>']
decoded 2th latent (top5): [' 9', '9', ' 8', ' far', ' any']
Model Prediction: The answer is: 18<|endoftext|>



Question4...
How long?...
CoT=<<2*30=60>> <<60/4=15.00>> <<15+1=16>>, Answer=16.0
decoded 0th latent (top5): ['60', ' 60', "it's", ' 61', ' 59']
decoded 1th latent (top5): ['/', '>>', '--', '<<', ' 14']
decoded 2th latent (top5): [' 14', 'fifteen', ' 9', '1', '5']
Model Prediction: The answer is: 16<|endoftext|>
"""
