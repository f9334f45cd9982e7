"""The embedded demo family: a small world, its captions and judge, a weight-free text encoder, and its networks."""
