"""Simplified Chinese."""

PHRASES = {
    "promoted": "已晋升",
    "passed": "已通过",
    "rejected": "未通过",
    "sees": "能看到",
    "uses": "能用到",
    "fails": "不达标",
    "next": "下一步",
    "pull": "拉取",
    "serve": "部署",
    "look": "查看",
    "not measured": "未测量",
    "{before_} → {after_} tokens": "{before_} → {after_} tokens",
    "Take a base that finds what is within its own window: this one does not":
        "换一个能在自身窗口内找到信息的基座模型：当前这个做不到",
    "Train longer (train.steps) on documents as long as the target":
        "用与目标上下文等长的文档训练更多步（train.steps）",
    "Train more gently (train.learning_rate), or for a shorter target":
        "降低学习率（train.learning_rate），或缩短目标上下文",
    "Train on exercises (train.exercises.share=1), or longer on them (train.steps)":
        "加入练习训练（train.exercises.share=1），或用练习训练更多步（train.steps）",
    "Ask for rope.target_context_tokens={tokens}: it uses {used} tokens":
        "改用 rope.target_context_tokens={tokens}：模型能用到 {used} 个 token",
    "Or turn positions back further: rope.factor={factor} with rope.target_context_tokens={tokens}":
        "或加大位置的缩放：rope.factor={factor}，同时给出 rope.target_context_tokens={tokens}",
    "Measure what the gate asks for (section evaluate), or empty that threshold":
        "测量门禁所要求的指标（evaluate 一节），或清空该阈值",
    "See gate.conditions of its recipe: a changed gate costs seconds":
        "查看配方中的 gate.conditions：修改门禁后重跑只需几秒",
    "A person promotes it: the form of its run, or yarn-ops approve":
        "需要人工批准晋升：在该次运行的表单中批准，或用 yarn-ops approve",
    "the base recalls {value} of the pairs within its own {tokens} tokens: "
    "a model that never used its own window gains nothing from a longer one":
        "基座模型在自身 {tokens} 个 token 内只召回了 {value} 的键值对：没用好自身窗口的模型，加长也无益",
    "{what_} was not measured, so the condition cannot be judged": "{what_}未测量，无法判定该条件",
    "{what_}: there is no ratio of {result} to {base}, so the condition cannot be judged":
        "{what_}：{result} 与 {base} 之间没有比值，无法判定该条件",
    "{what_} is {value}, which has no interval, and {evidence} needs one, so the condition cannot be judged":
        "{what_}为 {value}，没有置信区间，而 {evidence} 需要区间，无法判定该条件",
    "{name_} was not measured, so {check_} cannot be judged": "{name_}未测量，无法判定“{check_}”",
    "least of {task} that is lost ({before} before, {after} after, {lost} less) is {value}, above {most}":
        "{task} 的损失（之前 {before}，之后 {after}，减少 {lost}）的下界为 {value}，高于 {most}",
    "{what_} is {value}, below {threshold}": "{what_}为 {value}，低于 {threshold}",
    "{what_} is {value}, above {threshold}": "{what_}为 {value}，高于 {threshold}",
    "{what_} is {value}, not at least {threshold}": "{what_}为 {value}，未达到 {threshold}",
    "{what_} is {value}, not at most {threshold}": "{what_}为 {value}，超过 {threshold}",
    "{what_} is {value}, not surely at least {threshold}": "{what_}为 {value}，不能确信达到 {threshold}",
    "{what_} is {value}, not surely at most {threshold}": "{what_}为 {value}，不能确信不超过 {threshold}",
    "{what_} is {value}, not possibly at least {threshold}": "{what_}为 {value}，整个区间都低于 {threshold}",
    "{what_} is {value}, not possibly at most {threshold}": "{what_}为 {value}，整个区间都高于 {threshold}",
    "least of what {target} tokens keep of the base's recall at its {original} "
    "({before} in {form_} before, {after} in {other_} after, {kept} of it)":
        "{target} 个 token 处的召回率相对基座在其 {original} 处的保留比例（之前{form_} {before}，"
        "之后{other_} {after}，比值 {kept}）的下界",
    "least of what {target} tokens keep of the base's recall at its {original} "
    "({before} before, {after} after, {kept} of it)":
        "{target} 个 token 处的召回率相对基座在其 {original} 处的保留比例（之前 {before}，"
        "之后 {after}，比值 {kept}）的下界",
    "share used of {target} tokens ({uses} of them)": "目标 {target} 个 token 中能用到的比例（其中 {uses}）",
    "gain at {target} tokens (perplexity {before} before, {after} after)":
        "{target} 个 token 处的困惑度收益（之前 {before}，之后 {after}）",
    "growth of perplexity from {original} to {target} tokens ({short} to {long})":
        "从 {original} 到 {target} 个 token 的困惑度增长（{short} 到 {long}）",
    "perplexity after / before at {tokens} tokens": "{tokens} 个 token 处困惑度之后与之前的比值",
    "{form_} recall lost at {tokens} tokens ({before} before, {after} after)":
        "{tokens} 个 token 处{form_}召回率的损失（之前 {before}，之后 {after}）",
    "the base's recall at its own {tokens} tokens": "基座模型在自身 {tokens} 个 token 处的召回率",
    "recall of {form_} pairs at {tokens} tokens of {model_}":
        "{model_}在 {tokens} 个 token 处的{form_}召回率",
    "recall at {tokens} tokens of {model_}": "{model_}在 {tokens} 个 token 处的召回率",
    "recall at {tokens} tokens": "{tokens} 个 token 处的召回率",
    "recall up to {tokens} tokens": "不超过 {tokens} 个 token 时的召回率",
    "how far the result uses its window": "扩展后模型能用到的窗口长度",
    "perplexity at {tokens} tokens of {model_}": "{model_}在 {tokens} 个 token 处的困惑度",
    "the result's perplexity at {tokens} tokens": "扩展后模型在 {tokens} 个 token 处的困惑度",
    "base uses its window": "基座用好自身窗口",
    "recall kept": "召回率保留",
    "share used": "能用到的比例",
    "recall at the target": "目标长度的召回率",
    "long gain": "长文本收益",
    "long growth": "长文本困惑度增长",
    "short loss": "短文本损失",
    "short recall loss": "短文本召回率损失",
    "skill loss": "短文本能力损失",
    "the base": "基座模型",
    "the result": "扩展后模型",
    "{name_} of {model_}": "{model_}的 {name_}",
    "{name_} / base's": "{name_}与基座的比值",
    "{name_} less base's": "{name_}与基座之差",
    "{name_}, depth {depth}": "{name_}，深度 {depth} ",
    "{score} at {tokens} tokens": "{tokens} 个 token 处的 {score} ",
    "code": "代码式",
    "prose": "自然语言式",
    "perplexity": "困惑度",
    "code recall": "代码式召回率",
    "prose recall": "自然语言式召回率",
    "serve base and extended side by side (yarn-ops router), "
    "texts up to {original} tokens by the base: {changes_}":
        "同时部署基座与扩展后的模型（yarn-ops router），{original} 个 token 以内的文本交给基座：{changes_}",
    "serve the extended model alone: at worst, {changes_}": "只部署扩展后的模型即可：最坏情况下，{changes_}",
    "the model uses {used} tokens, the longest measured up to its target":
        "模型用到了 {used} 个 token，即目标以内测量的最长长度",
    "{fault_}; the model uses {used} tokens, {rest_}": "{fault_}；模型能用到 {used} 个 token，{rest_}",
    "ask for no more": "目标不必更长",
    "nothing is gained beyond it": "更长没有收益",
    "at {length} tokens {what_} is {value} against {short} at {original}":
        "在 {length} 个 token 处，{what_}为 {value}，而在 {original} 处为 {short}",
    "{what_} at {tokens} tokens changes by {change} and {also_} at {there} tokens changes by {other}":
        "{tokens} 个 token 处的{what_}变化 {change}，{there} 个 token 处的{also_}变化 {other}",
    "{what_} at {tokens} tokens changes by {change}": "{tokens} 个 token 处的{what_}变化 {change}",
    "{name}, {original} to {target} tokens": "{name}，{original} → {target} 个 token",
}  # fmt: skip
"""{a sentence of the verdict card, or a part of one: the same in Chinese}; the first that fits is taken, and
a placeholder that ends in _ is a part"""

DEPLOYMENTS = {
    "extend-model": (
        "用五个字段扩展模型的上下文并注册结果，其余由预设（preset）决定。\n\n"
        "输入基座模型和长文档，输出合并好、测量过的 MLflow 模型版本。输入相同的已完成阶段会直接复用。"
        "任何一端变差的模型都会登记为未通过，别名保持不动。"
    ),
    "extend-context": (
        "扩展 RoPE 模型的上下文并注册结果，表单包含整个配方。\n\n"
        "输入基座模型和长文档，输出合并好、测量过的 MLflow 模型版本。输入相同的已完成阶段会直接复用。"
        "任何一端变差的模型都会登记为未通过，别名保持不动。课程学习中某一段未通过自己的门禁时，运行随即结束，"
        "不注册任何版本。\n\n定时运行：`yarn-ops schedule RECIPE --cron TIMES` 会新建一个独立的 deployment。"
    ),
    "compare-methods": "在同一个基座上比较多种 RoPE 方法：数据、步数、评测完全相同，逐项给出困惑度与召回率。",
    "fit-rope": "不训练，直接为一个基座搜索 RoPE 方法的参数，并给出可粘贴进配方的 `[rope]` 一节。",
}
"""{deployment: what it does}"""

SECTIONS = {
    "Base": "要扩展的模型。",
    "Budget": "一次运行（含所有尝试）可用的预算；超出之前停止，之后可以继续。",
    "Condition": "门禁的附加条件，可针对评测的任意分数。",
    "Data": "用于训练和测量的文档。",
    "Evaluate": "对基座和结果测量什么。",
    "Exercises": "埋入文档、稍后提问的事实：让模型真正用上窗口。",
    "Gate": "发布必须通过的门禁。留空的阈值不检查。",
    "Leg": "课程学习中的一段。",
    "LegGate": "一段训练在自身上下文长度上必须达到的要求，通过后才进入下一段。留空的阈值不检查。",
    "Publish": "结果如何注册到 MLflow。",
    "Recipe": "一次运行要做的全部事情。",
    "Rope": "如何让超出原始上下文的位置可读。给出倍率或目标上下文。",
    "Train": "模型如何学会使用更长的上下文。",
}
"""{section of a recipe: its description}"""

FIELDS = {
    "extend-model.base": (
        "基座模型",
        "目录、hf:org/name@revision、models:/name@alias、s3://bucket/prefix，或演示用的 shipped:base512。",
    ),
    "extend-model.target_context_tokens": ("目标上下文（token）", "希望达到的上下文长度，例如 32768。"),
    "extend-model.documents": (
        "文档", "用于训练和测量的文件或通配符：文本、.jsonl、.parquet；本地或 s3://。",
    ),
    "extend-model.name": ("模型名称", "模型在 MLflow 中的名称，运行也以此命名。"),
    "extend-model.preset": (
        "预设",
        "quick：试一试；standard：与演示相同；thorough：加入让模型用上窗口的练习，"
        "并用评测套件测量能用到多远（需要 GPU）。",
    ),
    "extend-context.recipe": ("配方", "要做什么。"),
    "compare-methods.recipe": ("配方", "要做什么；其中的方法依次替换为下列各种方法。"),
    "compare-methods.methods": ("方法", "要比较的 RoPE 方法。"),
    "compare-methods.arms": (
        "训练方式",
        "每种方法的训练方式：zero-shot（不训练）、lora（按配方）、lora-only、lora+norms、lora+norms+embeddings、"
        "lora+r64、lora+all-linear、full（全部参数）。",
    ),
    "fit-rope.recipe": ("配方", "基座、文档、倍率，以及用多少窗口测量。"),
    "fit-rope.method": ("方法", "yarn（beta 与注意力系数）或 longrope（每对维度一个系数）。"),
    "Recipe.base": ("基座",),
    "Recipe.rope": ("RoPE",),
    "Recipe.data": ("数据",),
    "Recipe.train": ("训练",),
    "Recipe.evaluate": ("评测",),
    "Recipe.gate": ("门禁",),
    "Recipe.publish": ("发布",),
    "Recipe.budget": ("预算",),
    "Budget.dollars": ("美元", "按 YARN_OPS_GPU_HOUR 与 YARN_OPS_NODE_HOUR 计算。留空：不限。"),
    "Budget.hours": ("小时", "不含等待设备的时间。留空：不限。"),
    "Base.model": (
        "基座模型",
        "目录；hf:org/name@revision;models:/name@alias 或 models:/name/version(MLflow);s3://bucket/prefix;"
        "或演示用的 shipped:base512。仅支持 safetensors。",
    ),
    "Base.original_context_tokens": (
        "原始上下文（token）",
        "基座训练时的长度。仅当其 config 已含 RoPE 缩放时才需填写。",
    ),
    "Rope.method": ("方法", "除非要比较方法，否则用 yarn。"),
    "Rope.factor": (
        "倍率", "留空：目标上下文 / 原始上下文。取其两倍可使模型更好地找到远处的内容，近处文本略受影响。",
    ),
    "Rope.target_context_tokens": (
        "目标上下文（token）", "用于训练、评测与部署的长度，例如 32768。留空：倍率 × 原始上下文。",
    ),
    "Rope.beta_fast": ("beta_fast", "在原始上下文内转过的圈数高于此值的维度保持不变。"),
    "Rope.beta_slow": ("beta_slow", "圈数低于此值的维度完全插值。"),
    "Rope.attention_factor": ("注意力系数", "留空：yarn 取 0.1 ln(factor) + 1。并非所有推理服务都支持。"),
    "Rope.theta": ("theta", "仅 abf：替换后的基频。"),
    "Rope.low_freq_factor": ("low_freq_factor", "仅 llama3。"),
    "Rope.high_freq_factor": ("high_freq_factor", "仅 llama3。"),
    "Rope.short_factors": ("短文本系数", "仅 longrope，共 head_dim/2 个数。"),
    "Rope.long_factors": ("长文本系数", "仅 longrope，共 head_dim/2 个数。"),
    "Data.sources": (
        "来源",
        "文件或通配符：文本、JSON（逐行或数组）、Parquet，可压缩；本地或 s3://;"
        "stdlib:**/*.py 是当前 Python 自带的源代码。",
    ),
    "Data.follow_links": ("跟随链接", "允许链接指向来源所在目录之外。否则拒绝这样的链接。"),
    "Data.text_field": ("文本字段", "每行数据中的字段。缺少时，messages 或 conversations 按对话读取。"),
    "Data.languages": ("语言", "其他语言的文档会被排除：代码如 en、de、zh。留空：全部保留。"),
    "Data.min_document_tokens": ("最短文档（token）", "更短的文档会被排除。"),
    "Data.max_document_tokens": ("最长文档（token）", "更长的文档会被排除。留空：不排除。"),
    "Data.near_duplicate_similarity": (
        "近似重复阈值",
        "连续五词片段与先前文档的重合度达到此值的文档会被排除，例如 0.8。留空：只排除完全相同的。",
    ),
    "Data.shared_words": (
        "重合词数", "与留出或评测文档有这么多个连续相同词的文档不参与训练，例如 50。留空：不检查。",
    ),
    "Data.evaluation_sources": ("评测来源", "格式同来源：其他评测的文档，其中的段落不会进入训练。"),
    "Data.held_out_fraction": ("留出比例", "留作测量的文档比例，按文档划分。"),
    "Data.prefer_long": ("偏好长文档", "0：窗口按 token 均匀抽取；更大：比窗口长的文档权重更高。"),
    "Data.document_mask": ("文档间掩码", "打包窗口内，注意力不跨文档。"),
    "Data.seed": ("随机种子", "用于划分和窗口抽样。"),
    "Evaluate.lengths": ("长度", "以原始上下文的倍数表示。"),
    "Evaluate.windows": ("窗口数", "每个困惑度所用的留出窗口数。"),
    "Evaluate.sliding_stride_tokens": ("步幅（token）", "滑动窗口困惑度的步幅，例如 256;0：不测。"),
    "Evaluate.recall_windows": ("召回窗口数", "每个长度下埋入键值对的窗口数。"),
    "Evaluate.recall_pairs": ("每窗口键值对数", "窗口等分后每份一个。"),
    "Evaluate.templates": ("模板", "埋入的键值对的形式。"),
    "Evaluate.suite": (
        "评测套件",
        "模型能看到、能用到多远，用直至目标长度的大海捞针网格测量：tiny 几秒，quick 几分钟，"
        "use 含捞针以外的任务，full 包含全部（需要 GPU）；none：只看上面的分数。",
    ),
    "Evaluate.seed": ("随机种子",),
    "Condition.score": (
        "分数",
        "与记分卡一致：perplexity/last-quarter、perplexity/single-pass、recall/code、recall/prose、"
        "recall/code/no-needle 等；capacity/sees 与 capacity/uses 以 token 计。",
    ),
    "Condition.length": ("长度", "以原始上下文的倍数表示；留空：目标上下文。"),
    "Condition.depth": ("深度", "0 离问题最远；留空：所有深度。"),
    "Condition.measure": ("度量", "结果的分数；结果 / 基座；结果减基座。"),
    "Condition.at_least": ("不低于",),
    "Condition.at_most": ("不高于",),
    "Condition.evidence": (
        "证据",
        "value：数值本身。sure：整个 95 % 区间都须满足。unrefuted：仅当整个区间都不满足时才不通过，"
        "因此相当的模型很少被误拒。",
    ),
    "Gate.min_recall_kept": (
        "最低召回率保留", "结果在目标长度的召回率 / 基座在原始长度的召回率，各取最佳模板：95 % 区间的下端。",
    ),
    "Gate.min_uses_share": ("最低可用比例", "结果能找回信息的距离（capacity/uses）/ 目标上下文。"),
    "Gate.min_recall": ("目标长度最低召回率", "取最佳模板，与基座的召回率无关，例如 0.9。"),
    "Gate.min_long_gain": ("最低长文本收益", "目标长度下，基座困惑度 / 结果困惑度。"),
    "Gate.max_long_growth": ("最大增长", "结果在目标长度的困惑度 / 在原始长度的困惑度。"),
    "Gate.max_short_growth": ("短文本最大增长", "不超过原始长度的每个长度上，结果困惑度 / 基座困惑度。"),
    "Gate.max_short_recall_loss": ("最大召回率损失", "不超过原始长度时，基座召回率减去结果召回率。"),
    "Gate.max_skill_loss": (
        "短文本能力最大损失",
        "短题目的比例：完形填空、排序、能正常结束的对话。逐题比较的整个 95 % 区间都超出时才不通过。"
        "需要评测套件（quick、use、full）；例如 0.02。",
    ),
    "Gate.conditions": ("更多条件", "可针对任意分数；无法评估的条件视为不通过。"),
    "LegGate.max_long_growth": ("最大增长", "本段上下文长度的困惑度 / 原始长度的困惑度。"),
    "LegGate.min_recall": ("最低召回率", "取最佳模板，在本段的上下文长度上。"),
    "Publish.name": ("模型名称", "MLflow 中的注册模型名。"),
    "Publish.alias": ("别名", "门禁通过后指向新版本。"),
    "Publish.approval": ("人工审批", "由人决定是否晋升：运行会等待（在 Prefect 中带表单），直到有人决定。"),
    "Publish.experiment": ("实验", "MLflow 中的实验。"),
    "Publish.tags": ("更多标签", "加在模型版本上。"),
    "Publish.fingerprint": (
        "指纹", "在通过门禁的发布中附上 serve-check 用来比对推理服务的数据：对四段目标长度文本的几十次读取。",
    ),
    "Train.method": ("方法", "LoRA 适配器，或全部参数。"),
    "Train.rank": ("LoRA 秩",),
    "Train.alpha": ("LoRA alpha",),
    "Train.targets": (
        "LoRA 目标层",
        "线性层的名称；all-linear 表示除输出头和混合专家的融合专家外的所有线性层。",
    ),
    "Train.train_norms": ("训练归一化层", "LongLoRA 的发现：代价小且有效。"),
    "Train.train_embeddings": ("训练嵌入层",),
    "Train.exercises": ("窗口中的练习",),
    "Train.steps": ("步数", "优化器步数。给出课程学习的分段时忽略。"),
    "Train.context_tokens": ("窗口（token）", "训练窗口的长度；留空：目标上下文。"),
    "Train.legs": ("课程学习", "上下文逐段增长，例如先 16384 再 32768。留空：只有一段。"),
    "Train.batch_windows": ("每批窗口数",),
    "Train.gradient_accumulation_steps": ("每步批数", "梯度累积。"),
    "Train.learning_rate": ("学习率",),
    "Train.warmup_steps": ("预热步数",),
    "Train.final_learning_rate": ("最终学习率", "相对学习率的比例，按余弦下降到此值。"),
    "Train.weight_decay": ("权重衰减",),
    "Train.clip_norm": ("梯度裁剪", "最大梯度范数。"),
    "Train.precision": (
        "精度",
        "auto：GPU 上 bf16,CPU 上 fp32。fp8：bf16，其中冻结权重的乘积用 8 位计算；"
        "需 Hopper 或更新的 GPU，仅限 LoRA。nf4：同 auto，冻结权重以 4 位保存；仅限 LoRA，"
        "合并到原精度的基座。",
    ),
    "Train.context_parallel": ("每窗口 GPU 数", "几个 GPU 分担一个窗口的 token；留空：自动规划。"),
    "Train.shard_base": ("切分基座", "多个 GPU 是否分担冻结层；auto：更快或必须时才切分。"),
    "Train.checkpoint_every": ("检查点间隔（步）",),
    "Train.seed": ("随机种子",),
    "Exercises.share": ("比例", "含练习的训练窗口所占比例；0：只有文本，不会提升使用能力。"),
    "Exercises.answer_share": ("答案权重", "练习答案在窗口损失中所占的比例；其余是文本。"),
    "Exercises.families": ("种类", "练习的种类；留空：全部。"),
    "Leg.context_tokens": ("上下文（token）", "本段的窗口长度。"),
    "Leg.steps": ("步数",),
    "Leg.factor": ("倍率", "本段的 RoPE 倍率；留空：按本段上下文占目标上下文的比例取 rope 的倍率。"),
    "Leg.learning_rate": ("学习率", "留空：与配方相同。"),
    "Leg.prefer_long": ("偏好长文档", "本段如何抽取窗口；留空：与配方 data 一节相同。"),
    "Leg.carry": (
        "继承",
        "从上一段继承什么。adapter：继续训练适配器，优化器重置；adapter+optimizer：连同优化器；"
        "weights：先合并，再在结果上训练新的适配器。",
    ),
    "Leg.gate": ("门禁", "本段之后检查；未通过则运行结束，不注册任何版本。"),
}  # fmt: skip
"""{deployment or section.field: (title, description)}; a description only where the field has one"""
