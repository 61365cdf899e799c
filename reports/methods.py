"""The six methods, and what others published of them and of their relatives: what pages and pictures say of each."""

from typing import NamedTuple

DATASETS = {"glyphs": "glyphs", "omniglot": "Omniglot", "miniimagenet": "mini-ImageNet"}
PAPER = "Khullar and Srivastava, Table 2"


class Algorithm(NamedTuple):
    name: str
    adapts: str
    gradient: str
    equation: str
    paper: str
    colour: str  # of Okabe and Ito's palette, which the colour-blind can tell apart
    dashes: tuple  # and in grey print these can be


THIS_PAPER = "the paper above, section 3.4"
ALGORITHMS = {
    "convex_imaml": Algorithm(
        "Convex iMAML", "final layer, solved exactly", "implicit, at the optimum", "Eq 4 and 5, convex", THIS_PAPER,
        "#D55E00", (1, 0),
    ),
    "convex_maml": Algorithm(
        "Convex MAML", "final layer, by a few steps", "through the steps", "Eq 3 and 6", THIS_PAPER,
        "#0072B2", (1, 0),
    ),
    "maml": Algorithm(
        "MAML", "all weights, by a few steps", "through the steps", "Eq 3",
        "*Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks*, Finn, Abbeel, Levine, ICML 2017",
        "#000000", (5, 1),
    ),
    "imaml": Algorithm(
        "iMAML", "all weights, to a proximal optimum", "implicit, at the optimum", "Eq 4 and 5",
        "*Meta-Learning with Implicit Gradients*, Rajeswaran, Finn, Kakade, Levine, NeurIPS 2019",
        "#009E73", (5, 1),
    ),
    "reptile": Algorithm(
        "Reptile", "all weights, by a few steps", "none: moves towards where the steps end", "θ ← θ + ε (φ − θ)",
        "*On First-Order Meta-Learning Algorithms*, Nichol, Achiam, Schulman, 2018",
        "#CC79A7", (2, 1),
    ),
    "cavia": Algorithm(
        "CAVIA", "a context vector, by a few steps", "through the steps", "c ← c − α ∇L",
        "*Fast Context Adaptation via Meta-Learning*, Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, ICML 2019",
        "#E69F00", (2, 1),
    ),
}  # fmt: skip


class Published(NamedTuple):
    """A figure that others published: 5-way accuracy in per cent with 1 and 5 shots, None where there is none."""

    dataset: str
    method: str
    one_shot: float | None
    five_shot: float | None
    query: str  # "inductive", "transductive" (a query batch normalised by its own statistics), or "not said"
    filters: str
    views: str
    source: str


# The classes of mini-ImageNet's test split, which its files name by the numbers of WordNet.
SYNSETS = {
    "n01930112": "nematode", "n01981276": "king crab", "n02099601": "golden retriever", "n02110063": "malamute",
    "n02110341": "dalmatian", "n02116738": "African wild dog", "n02129165": "lion", "n02219486": "ant",
    "n02443484": "black-footed ferret", "n02871525": "bookshop", "n03127925": "crate", "n03146219": "cuirass",
    "n03272010": "electric guitar", "n03544143": "hourglass", "n03775546": "mixing bowl", "n04146614": "school bus",
    "n04149813": "scoreboard", "n04418357": "theatre curtain", "n04522168": "vase", "n07613480": "trifle",
}  # fmt: skip

# The figures are rounded to a tenth. Of the methods below the six, pre-trained ones classify all 64 classes first.
PUBLISHED = [
    Published("omniglot", "Convex iMAML", 81, 88, "not said", "not said", "1", PAPER),
    Published("omniglot", "Convex MAML", 81, 95, "not said", "not said", "1", PAPER),
    Published("omniglot", "MAML", 98.7, 99.9, "transductive", "64", "1", "Finn et al. 2017, Table 1"),
    Published("omniglot", "MAML", 76, 91, "not said", "not said", "1", PAPER),
    Published("omniglot", "iMAML", 99.5, 99.7, "transductive", "64", "1", "Rajeswaran et al. 2019, Table 2"),
    Published("omniglot", "iMAML", 75, 92, "not said", "not said", "1", PAPER),
    Published("omniglot", "Reptile", 95.4, 98.9, "inductive", "64", "1", "Nichol et al. 2018, Table 2"),
    Published("omniglot", "Reptile", 97.7, 99.5, "transductive", "64", "1", "Nichol et al. 2018, Table 2"),
    Published("omniglot", "Reptile", 59, 68, "not said", "not said", "1", PAPER),
    Published("omniglot", "CAVIA", 72, 79, "not said", "not said", "1", PAPER),
    Published("omniglot", "ProtoNet", 98.8, 99.7, "inductive", "64", "1", "Snell et al. 2017"),
    Published("omniglot", "Meta-SGD", 99.5, 99.9, "transductive", "64", "1", "Li et al. 2017"),
    Published("miniimagenet", "Convex iMAML", 45, 62, "not said", "not said", "1", PAPER),
    Published("miniimagenet", "Convex MAML", 42, 62, "not said", "not said", "1", PAPER),
    Published("miniimagenet", "MAML", 48.7, 63.1, "transductive", "32", "1", "Finn et al. 2017, Table 1"),
    Published("miniimagenet", "MAML", 42, 59, "not said", "not said", "1", PAPER),
    Published("miniimagenet", "iMAML", 49.3, None, "transductive", "32", "1", "Rajeswaran et al. 2019"),
    Published("miniimagenet", "iMAML", 42, 49, "not said", "not said", "1", PAPER),
    Published("miniimagenet", "Reptile", 47.1, 62.7, "inductive", "32", "1", "Nichol et al. 2018, Table 1"),
    Published("miniimagenet", "Reptile", 50.0, 66.0, "transductive", "32", "1", "Nichol et al. 2018, Table 1"),
    Published("miniimagenet", "Reptile", 28, 29, "not said", "not said", "1", PAPER),
    Published("miniimagenet", "CAVIA", 47.2, 59.1, "transductive", "32", "1", "Zintgraf et al. 2019"),
    Published("miniimagenet", "CAVIA", 51.8, 65.9, "transductive", "512", "1", "Zintgraf et al. 2019"),
    Published("miniimagenet", "CAVIA", 41, 57, "not said", "not said", "1", PAPER),
    Published("miniimagenet", "ANIL", 46.7, 61.5, "transductive", "32", "1", "Raghu et al. 2020"),
    Published("miniimagenet", "R2-D2", 51.2, 67.3, "inductive", "64", "1", "LibFewShot's run of it, Conv64F table"),
    Published("miniimagenet", "R2-D2", 51.2, 68.8, "inductive", "96 to 512", "1", "Bertinetto et al. 2019"),
    Published("miniimagenet", "MetaOptNet-RR", 53.2, 69.5, "inductive", "64", "1", "Deleu et al. 2022, Table 2"),
    Published("miniimagenet", "MetaOptNet-SVM", 52.9, 68.8, "inductive", "64", "1", "Deleu et al. 2022, Table 2"),
    Published("miniimagenet", "COMLN", 53.0, 70.5, "inductive", "64", "1", "Deleu et al. 2022, Table 2"),
    Published("miniimagenet", "MAML++, an ensemble", 52.2, 68.3, "transductive", "48", "1", "Antoniou et al. 2019"),
    Published("miniimagenet", "RFS, pre-trained", 55.3, 71.6, "inductive", "64", "1", "Tian et al. 2020"),
    Published("miniimagenet", "FEAT, pre-trained", 55.2, 71.6, "inductive", "64", "1", "Ye et al. 2020"),
    Published("miniimagenet", "IEPT, pre-trained", 56.3, 73.9, "inductive", "64", "4", "Zhang et al. 2021"),
]


def as_published(options: dict) -> bool:
    """Whether a run with these options is of the method that its script is named after, without learned rates."""
    return options.get("learn_rates", "no") == "no"


def method_of(options: dict) -> str:
    """A run's method for people; a copied script's is its own name."""
    script = options["algorithm"]
    name = ALGORITHMS[script].name if script in ALGORITHMS else script
    return name if as_published(options) else f"{name}, learned rates"
