"""Chinese (simplified)."""

from __future__ import annotations

from yarn_ops.exercises.language import Association, ChainForm, Form, Language

WORDS = """
安静 白色 冰冷 苍老 潮湿 沉默 春天 稻田 灯笼 低矮 冬日 风车 钢琴 高墙 古老 光滑 果园
海岸 黑夜 红叶 湖水 花园 黄昏 灰色 火炉 金色 镜子 橘子 孤独 蓝天 老树 篱笆 柳枝 露水
绿洲 麦浪 马车 明亮 木桥 南方 浓雾 暖风 葡萄 浅滩 青石 清晨 秋雨 软木 山谷 深井 石阶
书房 松林 铁门 微光 温柔 西窗 细雪 夏夜 小巷 新月 星空 雪地 遥远 银杏 幽深 雨伞 月光
云雀 早霞 竹影 紫藤
"""
PLAIN = {"answer": "{v}", "close": "。\n"}
LINE = {"answer": "{v}"}

CHINESE = Language(
    name="zh",
    name_syllables=tuple("安柏岑丹恩凡歌涵嘉凯岚敏宁沛琪若诗棠维昕雅泽舟卓晴瑜峻朗溪桐蔚瑾澜翊芷骁"),
    word_syllables=tuple("墨禾砚苔槐芦砾茉榛笙鹭麓杉苇珀"),
    place_endings=("镇", "湾", "坪", "渡", "堡", "岭"),
    words=tuple(WORDS.split()),
    joint="",
    comma="、",
    ordinals=("一", "二", "三", "四", "五"),
    lookup=(
        Form("person", "number", "\n{k}领到的工牌是{v}号。\n", "\n工牌号码，{k}：", **LINE),
        Form("person", "place", "\n{k}小时候住在{v}，离河不远。\n", "\n{k}小时候住的地方是", **PLAIN),
        Form("tag", "pair", "\n（{k}）{v}\n", "\n条目（{k}）写着", **LINE),
        Form("constant", "number", "\n常量 {k} 取值 {v}\n", "\n读取常量 {k}，得到"),
        Form("word", "number", "\n仓库里{k}还剩{v}件。\n", "\n{k}的剩余件数：", **LINE),
        Form("hex", "word", "\n| {k} | {v} |\n", "\n表中 {k} 右边一格是"),
        Form("name", "phrase", "\n{k}家的家训是“{v}”。\n", "\n家训，{k}家：“", answer="{v}", close="”。\n"),
        Form("tag", "hex", "\n12:04:31 警告 探头 {k} 报告 {v}\n", "\n探头 {k} 的报告内容"),
        Form("person", "number", "\n找{k}请拨{v}。\n", "\n要找{k}，应拨", **PLAIN),
        Form("name", "number", "\n货船{k}停在{v}号泊位。\n", "\n货船{k}的泊位号：", **LINE),
        Form("tag", "code", "\n设备 {k} 的许可：{v}\n", "\n设备 {k} 所用的许可是"),
        Form("code", "person", "\n票券 {k} 归{v}所有。\n", "\n票券 {k} 的主人：", **LINE),
        Form("number", "person", "\n{k}号房留给{v}。\n", "\n{k}号房的客人：", **LINE),
    ),
    values=(
        Form("name", "person", "\n{v}在{k}的签名簿上留了名。\n", "\n{k}的签名簿，依次为：", **LINE),
        Form("tag", "word", "\n{k} 装有：{v}\n", "\n{k} 里装的全部东西，按次序：", **LINE),
        Form("person", "pair", "\n{k}打包了{v}。\n", "\n{k}先后打包的：", **PLAIN),
    ),
    updates=(
        Form("name", "place", "\n{k}的车队迁到了{v}。\n", "\n{k}的车队如今在", **PLAIN),
        Form("constant", "number", "\n写入 {k} {v}\n", "\n再读 {k}，结果"),
        Form("person", "number", "\n{k}的余额变为{v}。\n", "\n{k}最近的余额：", **LINE),
    ),
    row_headings=(
        "登记表", "设置", "表格开始", "# 环境", "清单", "| 一 | 二 |", "对照", "注释", "索引", "- 行 -",
    ),
    row_questions=(
        ("登记表里与 ", " 相配的是 "), ("设置.", " ==> "), ("", " 的右边："), ("变量 ", " 打印出 "),
        ("", " 后面写着"), ("", " 旁边一格："), ("", " 的括号里写着"), ("注 ", " 全文\n"),
        ("左 = ", "\n右 = "), ("查到 ", "\n那里写着 "), ("> 找 ", "\n< "), ("哪一项配 ", "？"),
        ("从：", "\n到："), ("", " = "), ("甲 ", "\n乙 "), ("含 ", " 的那一行还有 "),
    ),
    count=(
        Form("name", "number", "\n{k}的钟敲了一下。\n", "\n到此为止，{k}的钟敲的次数：", **LINE),
        Form("tag", "number", "\n通道 {k} 重连\n", "\n通道 {k} 重连次数"),
        Form("person", "number", "\n{k}在窗边挥了挥手。\n", "\n{k}挥手的次数：", **LINE),
    ),
    ordinal=(
        Form("name", "phrase", "\n讲讲{k}吧。\n{v}\n", "\n关于{k}，第{i}次讲的是：", **LINE),
        Form("person", "phrase", "\n{k}来信：{v}。\n", "\n{k}的第{i}封信写道：", **PLAIN),
        Form("word", "phrase", "\n>>> 草稿（{k}）\n{v}\n", "\n# {k}的第{i}份草稿：", **LINE),
    ),
    chain=(
        ChainForm(
            "name", "place", "\n{a}把包裹交给了{b}。\n", "\n{a}把包裹留在{v}。\n",
            "\n{k}拿过的包裹最后留在", "\n从{k}起，包裹经过：", "，再到", "{v}", "。\n",
        ),
        ChainForm(
            "constant", "number", "\n别名 {a} 指向 {b}\n", "\n{a} 定为 {v}\n",
            "\n展开 {k} 得", "\n追踪 {k}：", " → ",
        ),
        ChainForm(
            "tag", "pair", "\n卡片{a}：请看卡片{b}。\n", "\n卡片{a}：奖品是{v}。\n",
            "\n从卡片{k}出发，奖品是", "\n从卡片{k}依次翻到：", "／", "{v}", "。\n",
        ),
    ),
    associations=tuple(
        Association(*pair)
        for pair in (
            ("乘电梯登上了埃菲尔铁塔", "法国"),
            ("在金字塔旁住了一夜", "埃及"),
            ("沿着长城走了三里路", "北京附近的古迹"),
            ("在农场喂过袋鼠", "澳大利亚"),
            ("坐着贡多拉穿过水巷", "威尼斯"),
            ("清早拍下了泰姬陵", "印度"),
            ("八月里攀登富士山", "日本"),
            ("在里约跳了一整夜桑巴", "巴西"),
            ("站在自由女神像脚下", "纽约"),
            ("在极地数企鹅", "南极洲"),
            ("从小不沾荤腥", "素食"),
            ("一喝牛奶就不舒服", "乳制品过敏"),
            ("靠修水管为生", "管道工"),
            ("每周驾驶客机越过大洋", "飞行员"),
            ("在医院里接骨", "医生"),
            ("天不亮就揉面生炉", "烘焙店"),
            ("在法庭上为被告说话", "律师"),
            ("在谷仓后面养蜂", "蜂蜜"),
            ("每年春天剪羊毛", "毛线"),
            ("用望远镜看土星", "天文"),
            ("一步将死赢了比赛", "国际象棋"),
            ("罚点球得分", "足球"),
        )
    ),
    association=(
        Form("person", "number", "\n{k}{clue}。\n", "\n这里有人与{asked}有关，是", "{k}", "。\n"),
        Form("person", "number", "\n听说{k}{clue}。\n", "\n话题：{asked}。对应的人：", "{k}"),
        Form("person", "number", "\n那时{k}{clue}。\n", "\n说到{asked}，会想起", "{k}", "。\n"),
    ),
    passage=(
        ("\n前面读到“", "”，紧接着是“", "”。\n"),
        ("\n> ", "\n> 续：", "\n"),
        ("\n上文摘录：", " ‖ 随后：", "\n"),
    ),
    heading=("\n\n【{k}】\n\n", "\n\n{k}\n———\n\n", "\n\n第 {k} 部\n\n"),
    section=(
        ("\n“", "”这段话所在的部分叫", "\n"),
        ("\n查找：", "\n位于：", "\n"),
        ("\n在“", "”上方的标题：", "\n"),
    ),
)  # fmt: skip
