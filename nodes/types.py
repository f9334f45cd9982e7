"""The socket types of this pack."""

from comfy_api.latest import io

L2R = io.Custom("FORESIGHT_L2R")
Scorer = io.Custom("FORESIGHT_SCORER")
Gate = io.Custom("FORESIGHT_GATE")
Verdict = io.Custom("FORESIGHT_VERDICT")
Anchor = io.Custom("FORESIGHT_ANCHOR")
Injection = io.Custom("FORESIGHT_INJECTION")
Watch = io.Custom("FORESIGHT_WATCH")
Reward = io.Custom("FORESIGHT_REWARD")
ChunkGate = io.Custom("FORESIGHT_CHUNK_GATE")
Refiner = io.Custom("FORESIGHT_REFINER")
