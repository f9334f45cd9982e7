"""Foresight: early failure detection and repair for video diffusion in ComfyUI."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI; imported here so that the lower rooms load without ComfyUI."""
    from .nodes import ForesightExtension

    return ForesightExtension()
