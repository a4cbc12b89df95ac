"""The models: decoder and image encoder in Flax Linen, key/value cache, generation."""
