"""How the demo family is meant to be sampled: read by the demo workflows, the demo command and the evaluation."""

TRANSFORMER = "foresight_demo_wan.safetensors"
VAE = "foresight_demo_wan_vae.safetensors"
SCORER = "foresight_demo_viclip.safetensors"
CONVERTER = "foresight_demo_l2r.safetensors"
REWARD = "foresight_demo_reward.safetensors"
STREAMER = "foresight_demo_wan_causal.safetensors"  # makes clips latent by latent, each in four steps
DIAGONAL = "foresight_demo_wan_diagonal.safetensors"  # in fewer steps from latent to latent
STUDENTS = (STREAMER, DIAGONAL)
MODELS = {"whole clips": TRANSFORMER, "streaming, four steps": STREAMER, "streaming, diagonal": DIAGONAL}

STEPS = 50  # the paper's schedule length
# The transformer settles a clip's composition above sigma .85, and not too well: fresh noise at each step lets it mend
# what it has begun, and twice as many clips come out right as with Euler (docs/demo_family.md).
SAMPLER = "euler_ancestral"
SCHEDULER = "simple"
# A small clip has few latent elements, so at a given sigma its x0 prediction knows less than a large one's: a low shift
# brings the decision forward. Wan's own would be 5 to 8. At 1 as many clips come out right, but at step 10 of 50 the
# judge foretells them with AUC .66 within prompt, here with .82 (docs/demo_family.md).
SHIFT = 0.4
CFG = 2.0
# Of the streaming students: Wan's own shift, and no guidance, which they were distilled to do without.
STREAM_SHIFT, STREAM_CFG, STREAM_STEPS = 5.0, 1.0, 4
STREAM_LATENTS, STREAM_FRAMES = 7, 25  # of a clip as they were trained on; more than that they do not see at once
# Of the gate on its streams. The scorer's tau (.145) was set on finished clips; a look at one or two latents of a new
# prompt scores less, right or wrong, so that tau would spend the budget on the first chunks (docs/streaming.md).
STREAM_TAU, STREAM_TRIES = 0.1, 4
