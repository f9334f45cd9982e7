"""The latent-to-RGB converter: models, fallback, checkpoints, training."""
