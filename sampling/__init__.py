"""ComfyUI samplers: monitor, segments, injection, and the hierarchy that drives them."""
