"""The nodes: schema, and one call into the rooms below."""

from comfy_api.latest import ComfyExtension

from . import folders, graph, panel
from .audition import SeedAudition
from .calibration import L2RCalibrate
from .cogvideox import CogVideoXSampler
from .demo import DemoTextEncoder
from .drop_in import ForesightKSampler, ForesightSamplerCustomAdvanced
from .enhancers import CandidateNoise, EnhancerReport, LatentSearchSampler, SelfRefineSampler
from .experts import TwoExpertGuiderNode
from .hierarchy import ForesightSampler
from .inspection import FailureGate, L2RPreview, ViCLIPScore
from .refining import NoiseRefinerNode
from .report import RunReport
from .reward import LatentRewardNode
from .rewording import PromptRefiner
from .sampling import LatentInjector, MonitoredSampler, SingleFrameProbe, TrialSwitch
from .streaming import ChunkGateNode, StreamingGuiderNode, StreamingReport, StreamingSampler
from .watch import ForesightWatch

folders.register()
panel.register()
graph.register()

NODES = [
    ForesightKSampler, ForesightSamplerCustomAdvanced, ForesightSampler, L2RPreview, L2RCalibrate, ViCLIPScore, FailureGate, MonitoredSampler, SingleFrameProbe, LatentInjector,
    PromptRefiner, TrialSwitch, RunReport, ForesightWatch, SeedAudition, TwoExpertGuiderNode, CogVideoXSampler, DemoTextEncoder,
    LatentRewardNode, SelfRefineSampler, LatentSearchSampler, EnhancerReport, CandidateNoise,
    StreamingSampler, StreamingGuiderNode, ChunkGateNode, StreamingReport, NoiseRefinerNode,
]  # fmt: skip


class ForesightExtension(ComfyExtension):
    async def get_node_list(self):
        return NODES
