"""The nodes in Chinese: what their schemas say in English -> how it is said in Chinese (see locales.py)."""

# ruff: noqa: E501 (a Chinese character counts as two columns)

NAMES = {
    "Foresight Sampler": "Foresight 采样器", "L2R Preview": "L2R 预览", "L2R Calibrate": "L2R 校准",
    "ViCLIP Score": "ViCLIP 评分", "Dynamic Failure Gate": "动态失败检测门", "Monitored Sampler": "受监视采样器",
    "Single-Frame Probe": "单帧探测", "Latent Injector": "潜空间注入", "VLM Prompt Refiner": "提示词改写",
    "Trial Switch": "尝试切换", "Run Report": "运行报告", "Foresight Watch": "Foresight 监视", "Seed Audition": "种子试镜",
    "Two-Expert Guider": "双专家引导器", "CogVideoX Sampler": "CogVideoX 采样器", "Demo Text Encoder": "演示文本编码器",
    "model": "模型", "clip": "CLIP", "prompt": "提示词", "negative": "负面提示词", "seed": "种子", "steps": "步数",
    "cfg": "CFG", "sampler_name": "采样器", "scheduler": "调度器", "latent_image": "潜空间图像", "scorer": "评分器",
    "l2r": "L2R", "refiner": "改写器", "inject": "注入", "tau": "tau（阈值）", "delta": "delta（优势）", "start": "窗口起点",
    "end": "窗口终点", "single_start": "单帧窗口起点", "single_end": "单帧窗口终点", "patience": "趋势长度", "every": "检查间隔",
    "reject_margin": "拒绝余量", "give_up_margin": "放弃余量", "accept_margin": "接受余量", "stable_range": "稳定范围",
    "injection_start": "注入起始步", "injection_steps": "注入步数", "injection_noise": "注入噪声", "injection_mask": "注入遮罩",
    "injection_strength": "注入强度", "low_noise_model": "低噪声模型", "low_noise_cfg": "低噪声 CFG", "boundary": "分界 sigma",
    "switch_step": "切换步", "converter": "转换器", "latent": "潜空间", "vae": "VAE", "images": "图像",
    "refine_seconds": "细化秒数", "save": "保存", "weights": "权重", "precision": "精度", "noise": "噪声", "guider": "引导器",
    "sampler": "采样器", "sigmas": "Sigmas", "gate": "检测门", "injection": "注入", "previous": "前一裁决",
    "on_reject": "被拒绝时", "keep_steps": "保留各步", "schedule_steps": "全程步数", "verdict": "裁决", "anchor": "锚帧",
    "preview": "预览", "back_end": "后端", "on_accept": "接受分支", "accept_verdict": "接受分支的裁决",
    "reject_verdict": "拒绝分支的裁决", "watch": "监视", "enabled": "启用", "seeds": "种子数", "keep": "保留数",
    "fraction": "比例", "choose": "选择方式", "wait_seconds": "等待秒数", "high_noise_model": "高噪声模型",
    "positive": "正面条件", "rule": "采样规则", "learn": "学习", "eta": "eta", "denoise": "去噪强度", "psnr": "PSNR", "score": "分数",
    "x0": "x0 预测", "steps_x0": "各步 x0", "negative_conditioning": "负面条件", "report": "报告", "value": "值",
    "vlm": "视觉语言模型", "endpoint": "端点", "manual_prompt": "手写提示词", "preset": "预设",
    "picture": "图片", "text": "文本", "json": "JSON", "contact_sheet": "缩略图表",
    "Latent Reward": "潜空间奖励", "visual_quality": "画面质量", "motion_quality": "运动质量", "text_alignment": "文本匹配",
    "reward": "奖励",
    "Self-Refine Sampler": "自我细化采样器", "Latent Search Sampler": "潜空间搜索采样器", "Enhancer Report": "增强报告",
    "Candidate Noise": "候选噪声", "plan": "计划", "plan_steps": "计划步数", "threshold": "阈值方式",
    "norm": "范数", "candidates": "候选数", "method": "方法", "schedule": "评分步", "schedule_of": "评分步所属步数",
    "beta": "beta（新噪声）", "budget": "预算", "temperature": "温度", "scale": "奖励尺度", "at_once": "同时评估数",
    "mask": "遮罩", "nfe": "评估次数", "candidate": "候选编号",
}  # fmt: skip

TEXTS = {
    # Foresight Sampler and its shared widgets
    "Samples a clip, stops it early when it is going to fail, and repairs it: a single frame injected (Trial 1), a refined "
    "prompt (Trial 2), or both. A clip that passes is the plain sampler's to the last bit.":
        "采样视频片段，预计失败时提前停止并修复：注入单帧（尝试 1）、改写提示词（尝试 2），或两者并用。通过的片段与普通采样器的结果逐位相同。",
    "What the clip should show; previews are scored against it.": "片段应呈现的内容；预览按它评分。",
    "What the clip should not show.": "片段不应呈现的内容。",
    "Of the noise; every trial starts from the same.": "噪声的种子；每次尝试都从同一噪声开始。",
    "Of the schedule; windows are shares of it.": "整个调度的步数；各窗口按它的比例计算。",
    "Classifier-free guidance scale.": "无分类器引导的强度。",
    "As in KSampler.": "与 KSampler 相同。",
    "Scores the previews: from ViCLIP Score.": "为预览评分：来自“ViCLIP 评分”。",
    "Makes the previews: from L2R Preview.": "生成预览：来自“L2R 预览”。",
    "Who states the prompt better in Trial 2. restart: same prompt, other noise. ablation: emphasises what the preview lacks, by the "
    "scorer alone. core: asks the "
    "vision-language model at vlm. endpoint: asks a configured server. manual: takes manual_prompt. off: only single frames are tried.":
        "尝试 2 中由谁改写提示词。restart：提示词不变，换噪声。ablation：仅凭评分器找出预览缺少的内容并强调。core：询问接在 vlm 上的视觉语言模型。endpoint：询问已配置的服务器。manual：使用 manual_prompt。off：只尝试单帧。",
    "Trial 1: start again from a single frame. With this and the refiner off, runs are only watched.":
        "尝试 1：从单帧重新开始。此项与改写器都关闭时，只监视、不干预。",
    "A clip whose predicted score is below tau fails. -1: the scorer's own (ViCLIP-L: 0.22). Higher is stricter and costs more.":
        "预测分数低于 tau 的片段判为失败。-1：用评分器自带的值（ViCLIP-L：0.22）。越高越严格，花费也越多。",
    "How much better a single frame must score before it is injected. -1: the scorer's own (ViCLIP-L: 0.05).":
        "单帧的分数要高出多少才会被注入。-1：用评分器自带的值（ViCLIP-L：0.05）。",
    "First deciding step, as a share of the schedule (0.16: step 8 of 50).": "最早可作决定的步，占调度的比例（0.16：50 步中的第 8 步）。",
    "Last deciding step, as a share of the schedule (0.28: step 14 of 50).": "最晚必须决定的步，占调度的比例（0.28：50 步中的第 14 步）。",
    "First deciding step of the single-frame probe (0.40: step 20 of 50).": "单帧探测最早可作决定的步（0.40：50 步中的第 20 步）。",
    "Last deciding step of the single-frame probe (0.60: step 30 of 50).": "单帧探测最晚必须决定的步（0.60：50 步中的第 30 步）。",
    "Thresholds that were fitted to logged runs (models/foresight_presets). They take the place of tau, the window and the "
    "rules above, and belong to one scorer.":
        "由已记录的运行拟合出的阈值（models/foresight_presets）。它取代上面的 tau、窗口和各条规则，并且只适用于一种评分器。",
    "Changes of score that make a trend.": "分数连续变化多少次才算趋势。",
    "Inspect each n-th step only (the last of the window is always inspected).": "每 n 步检查一次（窗口的最后一步总会检查）。",
    "Early reject: this far below tau and flat. In ViCLIP-L's units; other scorers bring their own scale.":
        "提前拒绝：低于 tau 这么多且不再变化。以 ViCLIP-L 的分数为单位；其他评分器自带比例。",
    "Give up: this far below tau and falling. In ViCLIP-L's units; other scorers bring their own scale.":
        "放弃：低于 tau 这么多且仍在下降。以 ViCLIP-L 的分数为单位；其他评分器自带比例。",
    "Early accept: this far above tau and steady. In ViCLIP-L's units; other scorers bring their own scale.":
        "提前接受：高于 tau 这么多且稳定。以 ViCLIP-L 的分数为单位；其他评分器自带比例。",
    "Stable stop: the last scores lie within this range. In ViCLIP-L's units; other scorers bring their own scale.":
        "稳定停止：最近的分数都落在此范围内。以 ViCLIP-L 的分数为单位；其他评分器自带比例。",
    "The step at whose noise level the clip starts from the anchor (paper: 2). Later keeps more of it.":
        "片段从锚帧开始时所处噪声水平对应的步（论文：2）。越晚，锚帧保留得越多。",
    "Steps over which it is blended in (paper: 2).": "混入锚帧所用的步数（论文：2）。",
    "initial: the seed's own noise (paper). fresh: other noise, another layout.": "initial：种子自己的噪声（论文）。fresh：另一噪声，另一布局。",
    "Weight over time. linear: full at the first frame, none at the last (paper).": "随时间的权重。linear：首帧最大，末帧为零（论文）。",
    "1: the paper's. Lower leaves more of the plain run (and more motion); 0 is the plain run.":
        "1：论文的设置。越低，普通运行（及运动）保留得越多；0 即普通运行。",
    "Wan 2.2 14B: the low-noise expert; `model` is then the high-noise one.": "Wan 2.2 14B：低噪声专家；此时 `model` 是高噪声专家。",
    "Guidance scale of the low-noise model (Wan 2.2 T2V: 3, I2V: 3.5). -1: the same as the other's.":
        "低噪声模型的引导强度（Wan 2.2 T2V：3，I2V：3.5）。-1：与另一模型相同。",
    "The low-noise model takes sigmas below this (Wan 2.2 T2V: 0.875, I2V: 0.9).": "sigma 低于此值时由低噪声模型接手（Wan 2.2 T2V：0.875，I2V：0.9）。",
    "Above 0: the low-noise model takes over after this step, whatever the boundary (end_at_step elsewhere).":
        "大于 0：在此步之后由低噪声模型接手，不论分界值（别处的 end_at_step）。",
    # L2R Preview
    "The latent-to-RGB converter that makes previews while a clip is sampled: one frame a latent frame.":
        "在采样过程中生成预览的潜空间到 RGB 转换器：每个潜空间帧对应一帧。",
    "auto: the trained converter for the model's latent format, else a calibrated one, else its latent_rgb_factors with smooth "
    "upsampling. Choose the demo's converter by name for the demo model.":
        "auto：用适合该模型潜空间格式的已训练转换器，否则用校准得到的转换器，再否则用其 latent_rgb_factors 加平滑放大。演示模型请按名称选择演示转换器。",
    "Needed by auto and latent_rgb_factors.": "auto 与 latent_rgb_factors 需要它。",
    "A latent to look at; the preview comes out as IMAGE.": "要查看的潜空间；预览以 IMAGE 输出。",
    "With auto: take only a converter that was made for this VAE.": "选 auto 时：只使用为此 VAE 制作的转换器。",
    # L2R Calibrate
    "Makes a latent-to-RGB converter for any video VAE in seconds: it encodes pictures made on the spot, and finds the map back "
    "to their pixels. Nothing is downloaded. It can also learn from your finished clips.":
        "几秒内为任意视频 VAE 制作潜空间到 RGB 转换器：编码当场生成的图片，再求回到像素的映射。不下载任何东西。也可以从你完成的片段中学习。",
    "The model whose latents are to be seen: it knows their scale.": "要查看其潜空间的模型：它知道数值的尺度。",
    "Its VAE; only the encoder is used. Not needed with a latent.": "它的 VAE；只用编码器。接有潜空间时不需要。",
    "A clip of your own to learn from as well; it is passed on.": "也可用你自己的片段来学习；图像原样传递。",
    "What the images were decoded from: then nothing has to be encoded. Put the node after VAE Decode.":
        "图像由此解码而来：这样就无需编码。请把此节点放在 VAE 解码之后。",
    "With a latent: add this clip to all that the kept converter has learned from, and keep the result. Takes about a second a "
    "clip.": "接有潜空间时：把此片段加入已保存转换器学过的内容，并保存结果。每个片段约需一秒。",
    "0: the closed-form fit alone. Otherwise it is trained for about so long after that.": "0：只做闭式拟合。否则在其后再训练大约这么久。",
    "Keep it in models/foresight_l2r (unless a better one for this VAE is there), where L2R Preview's auto finds it.":
        "保存到 models/foresight_l2r（除非那里已有此 VAE 的更好转换器），“L2R 预览”的 auto 会找到它。",
    # ViCLIP Score
    "Text-video alignment as VBench's overall consistency computes it. Put ViClip-InternVid-10M-FLT.pth or ViCLIP-L-14's "
    "model.safetensors into models/foresight (foresight_demo_viclip.safetensors comes with the pack and only knows the demo's "
    "shapes).":
        "按 VBench 的整体一致性计算文本与视频的匹配度。请把 ViClip-InternVid-10M-FLT.pth 或 ViCLIP-L-14 的 model.safetensors 放入 "
        "models/foresight（foresight_demo_viclip.safetensors 随本包提供，只认识演示的图形）。",
    "Put ViClip-InternVid-10M-FLT.pth or ViCLIP-L-14's model.safetensors into models/foresight "
    "(foresight_demo_viclip.safetensors comes with the pack and only knows the demo's shapes).":
        "请把 ViClip-InternVid-10M-FLT.pth 或 ViCLIP-L-14 的 model.safetensors 放入 models/foresight"
        "（foresight_demo_viclip.safetensors 随本包提供，只认识演示的图形）。",
    "fp32 equals VBench; fp16 halves the memory (1.7 to 0.9 GB) and moves scores by about 0.001.":
        "fp32 与 VBench 一致；fp16 内存减半（1.7 GB 到 0.9 GB），分数约有 0.001 的偏差。",
    "Frames of a clip to score against the prompt.": "要按提示词评分的片段帧。",
    "What the frames should show.": "这些帧应呈现的内容。",
    # Dynamic Failure Gate
    "Decides early, from the scores of the first steps, whether a clip will match its prompt.": "根据最初几步的分数，提前判断片段是否会符合提示词。",
    "What previews are scored against: the user's own words.": "预览按它评分：用户自己的原话。",
    # Monitored Sampler
    "SamplerCustomAdvanced that watches the clip and stops when it is going to fail. A clip that passes is the same to the last "
    "bit.": "会监视片段的 SamplerCustomAdvanced，预计失败时停止。通过的片段逐位相同。",
    "Without a gate this is the plain sampler.": "不接检测门时即普通采样器。",
    "Start from a probed frame (Trial 1).": "从探测到的帧开始（尝试 1）。",
    "The verdict that led here, for the report. After a failed refinement the clip is sampled plainly.":
        "通向此处的裁决，用于报告。改写失败后，片段按普通方式采样。",
    "stop: leave a failing run at once. report only: judge it, and sample it to the end.": "stop：立即离开失败的运行。report only：只作判断，仍采样到底。",
    "Give the x0 predictions of all steps as a batch.": "把所有步的 x0 预测作为批次输出。",
    "0: the sigmas here are the whole schedule. Where they are only its first part (a graph with one sampler for each expert), "
    "the steps of the whole, of which the gate's window is a share.":
        "0：此处的 sigmas 就是整个调度。若只是前一部分（每个专家各用一个采样器的图），请填全程步数，检测门的窗口按它的比例计算。",
    # Single-Frame Probe, Latent Injector
    "Samples one frame of the same prompt: does the model get at least a still right? Accepted when it beats the rejected clip "
    "by the gate's delta; after a refinement, whenever there is a frame at all.":
        "用同一提示词采样单帧：模型至少能画对静止画面吗？比被拒绝的片段高出 delta 时接受；改写之后，只要有帧就接受。",
    "The gate that rejected the run; it has the probe's own window.": "拒绝该运行的检测门；探测自己的窗口也在其中。",
    "Of the run that was rejected.": "被拒绝的运行的裁决。",
    "Starts a clip from a probed frame instead of from pure noise (the paper's Algorithm 1).": "让片段从探测到的帧而非纯噪声开始（论文算法 1）。",
    "From Single-Frame Probe.": "来自“单帧探测”。",
    # VLM Prompt Refiner
    "Looks at the failed preview and states the prompt better, or draws other noise. The ablation and restart back ends need no "
    "model and no network.":
        "查看失败的预览并改写提示词，或换用另一噪声。ablation 与 restart 后端不需要模型和网络。",
    "The prompt that failed.": "失败的提示词。",
    "The negative prompt that went with it.": "与之配套的负面提示词。",
    "Of the rejected run.": "被拒绝的运行的预览。",
    "Of the probe or of the rejected run: what has happened so far.": "探测或被拒绝的运行的裁决：至今发生的一切。",
    "Says how well the preview fits each wording.": "判断预览与各种说法的匹配程度。",
    "restart: same prompt, other noise. ablation: emphasises what the preview lacks, by the scorer alone. core: asks the "
    "vision-language model at vlm. endpoint: asks a configured server. manual: takes manual_prompt.":
        "restart：提示词不变，换噪声。ablation：仅凭评分器找出预览缺少的内容并强调。core：询问接在 vlm 上的视觉语言模型。endpoint：询问已配置的服务器。manual：使用 manual_prompt。",
    "Of the rejected run, for back ends that draw it anew.": "被拒绝的运行的噪声，供重新抽取噪声的后端使用。",
    "core: the CLIP of a vision-language model that generates text, e.g. Qwen3-VL or Gemma.":
        "core：能生成文本的视觉语言模型的 CLIP，如 Qwen3-VL 或 Gemma。",
    "endpoint: a profile that this machine's owner has configured (docs/refiner.md).": "endpoint：本机所有者配置的档案（docs/refiner.md）。",
    "manual: your own prompt for Trial 2.": "manual：你自己为尝试 2 写的提示词。",
    # Trial Switch, Run Report, Foresight Watch
    "Passes on what the verdict asks for. The other branch never runs.": "按裁决传递所需的分支。另一分支不会运行。",
    "Decides which branch is needed.": "决定需要哪个分支。",
    "Passed on when the verdict is accepted.": "裁决为接受时传递。",
    "Passed on when the verdict is rejected.": "裁决为拒绝时传递。",
    "The verdict of the on_accept branch, so that the report at the end tells the whole story.": "接受分支的裁决，使最后的报告完整。",
    "The verdict of the on_reject branch, so that the report at the end tells the whole story.": "拒绝分支的裁决，使最后的报告完整。",
    "The trials of a run with their scores, rules and cost.": "一次运行的各次尝试：分数、规则与花费。",
    "Of the last node of the run: it brings the whole history.": "运行中最后一个节点的裁决：带有全部历史。",
    "From Foresight Watch, instead of a verdict. Connect images as well.": "来自“Foresight 监视”，代替裁决。请同时连接图像。",
    "The finished clip: scored as well where a scorer is connected; with a watch, what to wait for.":
        "完成的片段：接有评分器时也为它评分；接有监视时，用它等待采样结束。",
    "Scores the finished clip; connect images as well.": "为完成的片段评分；请同时连接图像。",
    "Keep the picture, with the workflow in it, and the JSON in the output folder under foresight/report.":
        "把图片（内含工作流）和 JSON 保存到输出文件夹的 foresight/report。",
    "Judges early what a model samples, under KSampler or any other sampler node. It only reports: nothing is stopped, and "
    "every clip is the same to the last bit.":
        "在 KSampler 或任何采样节点下，提前判断模型的采样结果。只作报告：不停止任何运行，片段逐位相同。",
    "The model to watch; connect the result to your sampler.": "要监视的模型；把结果接到你的采样器。",
    "From Dynamic Failure Gate.": "来自“动态失败检测门”。",
    "Off: the model passes through as it is.": "关闭：模型原样通过。",
    "For Run Report, with the decoded clip as its images.": "接到“运行报告”，并把解码后的片段接到它的图像。",
    # Seed Audition
    "Samples many seeds a short way, scores their previews, and finishes the best or those you tick in the Foresight tab. A "
    "finished clip is the same as with its seed alone.":
        "让多个种子各采样一小段，为预览评分，再完成最好的或你在 Foresight 侧栏中勾选的。完成的片段与单独用该种子时相同。",
    "Its converter, scorer and prompt; its window and tau are not used.": "使用其中的转换器、评分器和提示词；不使用窗口和 tau。",
    "The first seed; the others follow by one.": "第一个种子；其余依次加一。",
    "How many are heard.": "试镜多少个种子。",
    "How many are finished.": "完成多少个。",
    "Of the schedule, after which a seed is scored. The cost is seeds x fraction + keep runs.": "采样到调度的多大比例时评分。花费为 种子数 × 比例 + 保留数 次运行。",
    "by hand: waits for your ticks in the Foresight tab, as long as it is open. Without it, the best.":
        "by hand：Foresight 侧栏打开时等待你勾选。否则取最好的。",
    "For by hand; then the best are taken.": "用于 by hand；超时则取最好的。",
    # Latent Reward
    "Foretells visual quality, motion quality and text alignment of a half-sampled clip from its latent, without decoding "
    "anything: the reward of a Latent Search.":
        "不解码任何内容，只从潜空间预测采样到一半的片段的画面质量、运动质量与文本匹配：“潜空间搜索”的奖励。",
    "A reward that was trained for this very model, in models/foresight_reward (foresight_demo_reward.safetensors comes with "
    "the pack and only knows the demo's model). One whose measured accuracy is below the bar is refused.":
        "专为此模型训练的奖励，放在 models/foresight_reward（foresight_demo_reward.safetensors 随本包提供，只认识演示模型）。实测准确率低于标准的会被拒绝。",
    "The scorer whose text features the reward was trained with.": "训练该奖励时提供文本特征的评分器。",
    "What candidates are compared on: the clip's prompt.": "候选片段按它比较：片段的提示词。",
    "Weight of clear pictures in the reward; 1 for all three is LatSearch's sum.": "画面清晰在奖励中的权重；三者都为 1 即 LatSearch 的总和。",
    "Weight of coherent motion in the reward; 1 for all three is LatSearch's sum.": "运动连贯在奖励中的权重；三者都为 1 即 LatSearch 的总和。",
    "Weight of fitting the prompt in the reward; 1 for all three is LatSearch's sum.": "符合提示词在奖励中的权重；三者都为 1 即 LatSearch 的总和。",
    # Self-Refine Sampler, Latent Search Sampler, Enhancer Report, Candidate Noise
    "Samples instead of sampler_name: from Self-Refine Sampler or Latent Search Sampler.":
        "代替 sampler_name 进行采样：来自“自我细化采样器”或“潜空间搜索采样器”。",
    "A sampler that refines a clip while it is made: at some early steps it predicts the clip, adds fresh noise and predicts "
    "again, and keeps what both agree on. No training; costs half as much again (Predict and Perturb).":
        "在采样过程中细化片段的采样器：在若干早期步上预测片段、加入新噪声再次预测，并保留两次一致之处。无需训练；多花约一半的计算（Predict and Perturb）。",
    "From KSamplerSelect. In refined steps all but first-order ones step as euler.":
        "来自 KSamplerSelect。在被细化的步上，除一阶采样器外都按 euler 走一步。",
    "The published settings. T2V: 60 evaluations on 40 steps. distilled: 13 on 8. custom: plan and plan_steps.":
        "已发表的设置。T2V：40 步共 60 次评估。distilled：8 步共 13 次。custom：使用 plan 与 plan_steps。",
    "For custom. first-last:extra passes, counted from 0: 2-5:3, 6-13:1 is the T2V plan.":
        "用于 custom。起步-止步:额外遍数，从 0 计：2-5:3, 6-13:1 即 T2V 的计划。",
    "For custom: the schedule that the plan counts in. On others it is stretched.": "用于 custom：计划所依据的步数。步数不同时按比例伸缩。",
    "Where two predictions differ by less, nothing is refined. Higher refines less; 0 refines everywhere. -1: the preset's own "
    "(T2V: 0.2).": "两次预测之差小于它的地方不再细化。越高细化越少；0 处处细化。-1：用预设自带的值（T2V：0.2）。",
    "absolute: tau in units of Wan's latent. quantile: tau is the share of the clip to be left, for other models.":
        "absolute：tau 以 Wan 潜空间的单位计。quantile：tau 是保持不变的比例，用于其他模型。",
    "Of the difference over the channels (published: 1).": "各通道之差所用的范数（已发表：1）。",
    "A sampler that begins several candidates of one clip, scores them half way and finishes the best. Costs two to three clips "
    "(LatSearch). Connect a gate or a reward.":
        "为一个片段开始多个候选，中途评分，只完成最好的一个。花费相当于两到三个片段（LatSearch）。请连接检测门或奖励。",
    "Any SAMPLER; from Self-Refine Sampler too.": "任意 SAMPLER；也可来自“自我细化采样器”。",
    "Scores the candidates by how well their previews fit its prompt.": "按候选的预览与其提示词的符合程度评分。",
    "Scores the candidates instead of the gate.": "代替检测门为候选评分。",
    "Candidate 0 is the clip of the seed itself.": "候选 0 就是该种子本身的片段。",
    "resampling: LatSearch. beam: the better half goes on. best of N: all are finished, the best is kept.":
        "resampling：LatSearch。beam：较好的一半继续。best of N：全部完成，保留最好的。",
    "The steps after which candidates are scored, counted from 0; not for best of N.": "在这些步之后为候选评分，从 0 计；best of N 不使用。",
    "How many steps the schedule counts in. On other numbers of steps it is stretched.": "评分步所依据的总步数。步数不同时按比例伸缩。",
    "New noise in a candidate. 0.1: all are close to the seed's clip. 1: each is the clip of its own seed (seed + 1, ...).":
        "候选中的新噪声。0.1：都接近该种子的片段。1：各为自己种子的片段（种子 + 1……）。",
    "The most model evaluations that a clip may take in all, self-refinement included. 0: no bound.":
        "一个片段总共最多可用的模型评估次数，含自我细化。0：不限。",
    "Of resampling. Less trusts the reward more.": "用于 resampling。越低越信任奖励。",
    "spread: rewards are divided by their spread first, so that any reward will do. raw: as they are.":
        "spread：先把奖励除以其离散程度，任何奖励都适用。raw：原样使用。",
    "Candidates in one model call: faster where there is memory, and then equal only up to rounding.":
        "一次模型调用中的候选数：显存充足时更快，但结果只在舍入误差内相同。",
    "What a Self-Refine Sampler or a Latent Search Sampler did: where it refined, which candidates it dropped, and the model "
    "evaluations.": "“自我细化采样器”或“潜空间搜索采样器”做了什么：细化了哪里、放弃了哪些候选、用了多少次模型评估。",
    "From Self-Refine Sampler or Latent Search Sampler.": "来自“自我细化采样器”或“潜空间搜索采样器”。",
    "The clip that was sampled with it: the report waits for it.": "用它采样的片段：报告会等待它。",
    "The noise of one candidate of a Latent Search Sampler, to sample it alone: the same clip to the last bit.":
        "“潜空间搜索采样器”中一个候选的噪声，用于单独采样：结果逐位相同。",
    "The noise that the search was given.": "搜索所得到的噪声。",
    "Its number in the report.": "它在报告中的编号。",
    "As in the search.": "与搜索中相同。",
    # Two-Expert Guider, CogVideoX Sampler, Demo Text Encoder
    "Wan 2.2 14B's high-noise and low-noise models as one guider over one schedule, so that a clip can be watched, stopped and "
    "repaired across both. Works with SamplerCustomAdvanced as well.":
        "把 Wan 2.2 14B 的高噪声与低噪声模型合为一个引导器、一个调度，使片段可跨两者监视、停止与修复。也可用于 SamplerCustomAdvanced。",
    "Guidance scale of the high-noise model (Wan 2.2 T2V: 4, I2V: 3.5).": "高噪声模型的引导强度（Wan 2.2 T2V：4，I2V：3.5）。",
    "CogVideoX's own samplers and schedule, for SamplerCustomAdvanced or any node that takes a SAMPLER and SIGMAS. ComfyUI's "
    "samplers do not work with native CogVideoX by themselves.":
        "CogVideoX 自己的采样器与调度，用于 SamplerCustomAdvanced 或任何接受 SAMPLER 和 SIGMAS 的节点。ComfyUI 的采样器本身不适用于原生 CogVideoX。",
    "Native CogVideoX (ComfyUI 0.33 or newer).": "原生 CogVideoX（ComfyUI 0.33 或更新）。",
    "dpm: the 5B model's, adds noise of its own at each step. ddim: the 2B model's, deterministic at eta 0.":
        "dpm：5B 模型所用，每步自行加噪。ddim：2B 模型所用，eta 为 0 时是确定的。",
    "The released setting is 50.": "发布时的设置为 50。",
    "Noise that ddim adds; dpm has no use for it.": "ddim 添加的噪声；dpm 不使用。",
    "Below 1: only the last part, for video to video.": "小于 1：只做最后一部分，用于视频到视频。",
    "The text encoder of the embedded demo family. It has no weights and knows no language: it only fits "
    "foresight_demo_wan.safetensors.": "内置演示模型的文本编码器。没有权重，不懂语言：只适用于 foresight_demo_wan.safetensors。",
}  # fmt: skip
