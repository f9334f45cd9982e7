"""How the demo family is meant to be sampled: read by the demo workflows, the demo command and the evaluation."""

TRANSFORMER = "foresight_demo_wan.safetensors"
VAE = "foresight_demo_wan_vae.safetensors"
SCORER = "foresight_demo_viclip.safetensors"
CONVERTER = "foresight_demo_l2r.safetensors"

STEPS = 50  # the paper's schedule length
SAMPLER = "euler"
SCHEDULER = "simple"
# A small clip has few latent elements, so at a given sigma its x0 prediction knows less than a large one's: a low shift
# brings the decision forward (docs/demo_family.md).
SHIFT = 0.4
CFG = 4.0
