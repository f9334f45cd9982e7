"""The latent-to-RGB converter: models, fallback, checkpoints, fits to a VAE."""
