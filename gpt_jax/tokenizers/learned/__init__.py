"""Networks that learn to encode and decode: autoencoders and their quantizers."""
