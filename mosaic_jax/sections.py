"""The sections of the configuration: frozen dataclasses of settings with defaults, help and limits. Imports no JAX."""

import dataclasses

from mosaic_jax.registry import FEDERATIONS, GENERATORS, META_MODELS, NETWORKS, PARTITIONS
from mosaic_jax.settings import setting
from mosaic_jax.sources import forms

MOST_CLIENTS = MOST_ROUNDS = 10**6  # all are counted before a run begins
MOST_IN_A_BATCH = 2**16  # images: far more than memory holds; the pixels of 2^19 of 64x64 overflow 32 bits


@dataclasses.dataclass(frozen=True)
class DataConfig:
    source: str = setting("digits", " | ".join(forms()))
    dir: str = setting(
        "", "where prepared data sets and official files are, and where a folder or an .npz file is looked for that is not where "
        "data.source says; empty is $TFDS_DATA_DIR or ~/tensorflow_datasets",
    )  # fmt: skip
    image_size: int = setting(32, "height and width in pixels that images are resized to", choices=(32, 64))
    labels: str = setting(
        "as_given",
        "as_given: labels are 0 to K-1, each with training images; compact: those that have any are numbered anew, and "
        "classes keep their names or are named by their labels",
        choices=("as_given", "compact"),
    )
    background: str = setting("white", "what transparent pixels of image files are shown over", choices=("white", "grey", "black"))
    bit_depth: int = setting(
        0,
        "bits that the values of 16-bit grey image files have; 0: as many, from 8, as the largest of them has",
        choices=(0, *range(8, 17)),
    )
    augment: str = setting(
        "auto",
        "augmentation of training batches; auto is the named data set's own, none for others",
        choices=("auto", "none", "crop_flip"),
    )
    image_range: str = setting(
        "symmetric",
        "symmetric: images in [-1, 1] everywhere; normalized: (x - mean) / std, as the public code",
        choices=("symmetric", "normalized"),
    )
    mean: tuple[float, float, float] = setting((0.5, 0.5, 0.5), "channel means for image_range=normalized, of x in [0, 1]")
    std: tuple[float, float, float] = setting(
        (0.0, 0.0, 0.0), "channel deviations; 0,0,0 takes means and deviations of the named data set, 0.5 for others", low=0.0
    )
    validation_fraction: float = setting(
        0.1, "share of each client's training images held back for federated validation", low=0.0, high=0.5
    )


@dataclasses.dataclass(frozen=True)
class PartitionConfig:
    kind: str = setting(
        "dirichlet_unbalanced",
        "how training images are dealt to clients",
        choices=PARTITIONS,
    )
    alpha: float = setting(0.1, "Dirichlet concentration of three kinds; smaller is more heterogeneous", low=1e-6)
    num_clients: int = setting(10, "number of clients", low=1, high=MOST_CLIENTS)
    min_samples: int = setting(
        10, "dirichlet_unbalanced and quantity_skew redraw until the smallest client has this many images", low=1
    )
    max_draws: int = setting(1000, "draws without min_samples at every client that end in an error", low=1)
    repair: bool = setting(False, "instead of redrawing, move the fewest images that give every client min_samples")
    shards_per_client: int = setting(2, "shards: label-sorted pieces of the training set that a client gets", low=1)
    table: str = setting("", "table: a CSV file of client by class counts, as `mosaic-jax partition --out` writes it")
    feature_rotation: float = setting(
        0.0,
        "degrees that the last client's images are turned, the i-th of C clients by i / C of it; 0 is off",
        low=0.0,
        high=360.0,
    )
    feature_noise: float = setting(
        0.0, "deviation of Gaussian noise on the last client's pixels in [0, 1], the i-th of C clients by i / C of it; 0 is off",
        low=0.0, high=10.0,
    )  # fmt: skip

    @property
    def has_feature_skew(self) -> bool:
        return self.feature_rotation > 0 or self.feature_noise > 0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    name: str = setting(
        "resnet18", "the global network and the student; the clients' too unless clients.models says otherwise", choices=NETWORKS
    )
    width: int = setting(64, "channels of the first stage; later stages double it; a ViT's tokens have 8 times as many", low=1)
    norm: str = setting(
        "batch",
        "BatchNorm, or GroupNorm, which has no statistics; of CNNs and ResNets, the clients' too",
        choices=("batch", "group"),
    )

    @property
    def has_batch_norm(self) -> bool:
        return NETWORKS.entry(self.name).batch_norm and self.norm == "batch"


@dataclasses.dataclass(frozen=True)
class ClientsConfig:
    models: tuple[str, ...] = setting(
        (), "networks of the clients, each NAME:WIDTH as in cnn:16; client i has the (i mod number)-th; empty: all have `model`"
    )
    rates: tuple[float, ...] = setting(
        (), "share of each layer's channels that each client has, one for every client; empty: all have 1", low=1e-3, high=1.0
    )
    rho: int = setting(0, "rates by rule: client i of C, counted from 1, has 0.5^min(4, floor(rho i / C)); 0 is off", low=0)
    dropout_rate: float = setting(0.0, "probability that a client drops out of a round before it begins", low=0.0, high=1.0)
    straggler_rate: float = setting(0.0, "probability that what a client did in a round comes too late to count", low=0.0, high=1.0)
    scaler: bool = setting(True, "narrower clients divide what a convolution gives by their rate")
    masked_loss: bool = setting(True, "width methods: logits of classes that a client does not hold count as 0 in its loss")
    batch_norm: str = setting(
        "static", "width methods, statistics of the global model: static: taken anew from the clients' images when it is judged; "
        "averaged: the mean of the clients' running statistics", choices=("static", "averaged"),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class WarmupConfig:
    method: str = setting(
        "fedavg", "federated method of the rounds that a method of several stages begins and ends with", choices=FEDERATIONS
    )
    num_rounds: int = setting(300, "federated rounds before the generators", low=1, high=MOST_ROUNDS)
    num_local_steps: int = setting(10, "SGD steps of each client in a round", low=1)
    batch_size: int = setting(64, "images of one local step", low=1, high=MOST_IN_A_BATCH)
    client_learning_rate: float = setting(0.01, "SGD learning rate of the clients", low=0.0)
    weight_decay: float = setting(1e-4, "L2 coefficient added to the gradient", low=0.0)
    clients_per_round: int = setting(
        0, "clients drawn for a round, here and in fine-tuning; 0 is all; rounds with prototypes have all", low=0
    )
    order: str = setting(
        "shuffled",
        "order of a client's images: reshuffled at each pass, or fixed as in the public code",
        choices=("shuffled", "fixed"),
    )


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    name: str = setting("dcgan", "the network of every client's generator", choices=GENERATORS)
    num_steps: int = setting(1000, "GAN steps of every client, whatever its size", low=0)
    num_epochs: int = setting(0, "if positive, passes over the client's data instead of num_steps (public code: 200)", low=0)
    batch_size: int = setting(64, "real and generated images of one step", low=2, high=MOST_IN_A_BATCH)
    width: int = setting(64, "DCGAN base width; the widest layer has 8 times as many channels", low=1)
    latent_size: int = setting(100, "length of the noise vector", low=1)
    learning_rate: float = setting(2e-4, "Adam rate of generator and discriminator", low=0.0)
    beta1: float = setting(0.5, "Adam first-moment decay", low=0.0, high=0.9999)
    beta2: float = setting(0.999, "Adam second-moment decay", low=0.0, high=0.99999)
    discriminator: str = setting(
        "separate", "separate network, or the client's own classifier as in the paper", choices=("separate", "classifier")
    )
    classifier: str = setting(
        "global",
        "auxiliary classifier: the global model, the client's own warm-up model (paper), "
        "or one trained on the client alone (public code)",
        choices=("global", "client", "local"),
    )
    classifier_num_epochs: int = setting(50, "passes of the client's own auxiliary classifier training", low=0)
    classifier_learning_rate: float = setting(0.01, "SGD rate of the auxiliary classifier", low=0.0)
    classifier_batch_norm: str = setting(
        "eval", "BatchNorm of the auxiliary classifier on generated images", choices=("eval", "train")
    )
    entropy_weight: float = setting(0.0, "weight of the mean prediction entropy H", low=0.0)
    diversity_weight: float = setting(0.0, "weight of sum_k w_k log w_k over the batch-mean prediction w", low=0.0)
    inversion_weight: float = setting(0.0, "weight of the BatchNorm statistics mismatch L_inv", low=0.0)
    inversion_threshold: int = setting(0, "tau: L_inv only for clients with fewer training images; 0 means for all", low=0)
    augment: str = setting(
        "translate",
        "differentiable augmentation of real and generated images before the discriminator",
        choices=("none", "translate"),
    )
    real_target: float = setting(
        0.9, "discriminator target for real images (one-sided label smoothing); 1 is plain", low=0.5, high=1.0
    )
    real_classes: str = setting(
        "all",
        "all: every image of the client; without_class_0: the public code's defect",
        choices=("all", "without_class_0"),
    )
    sampling_batch_norm: str = setting("batch", "BatchNorm of generators when sampling", choices=("eval", "batch"))
    ema: float = setting(
        0.0, "decay of the moving average of generator parameters that is uploaded; 0 is off", low=0.0, high=0.9999
    )


@dataclasses.dataclass(frozen=True)
class PrototypesConfig:
    per_class: int = setting(10, "k-means centres of each class at each client", low=1, high=MOST_IN_A_BATCH)
    keep_per_class: int = setting(0, "keep only the first so many centres (public code: 10); 0 keeps all", low=0)
    num_rounds: int = setting(
        1, "the last so many warm-up rounds whose prototypes are kept; 0 keeps every round (public code)", low=0
    )
    kmeans_steps: int = setting(20, "Lloyd iterations", low=1)


@dataclasses.dataclass(frozen=True)
class MetaConfig:
    name: str = setting("attention", "the model that mixes the class experts", choices=META_MODELS)
    num_steps: int = setting(250, "Adam steps of the meta model", low=0)
    batch_size: int = setting(128, "prototypes of one step", low=1, high=MOST_IN_A_BATCH)
    source: str = setting(
        "auto",
        "what it is trained on: the clients' prototypes, or generated images labelled by the class experts; auto: "
        "prototypes where all experts read the same features",
        choices=("auto", "prototypes", "generated"),
    )
    samples_per_client: int = setting(64, "source=generated: images of every client's generator", low=1, high=MOST_IN_A_BATCH)
    batches_per_epoch: int = setting(0, "batches taken before reshuffling (public code: 1); 0 walks all prototypes", low=0)
    learning_rate: float = setting(1e-3, "Adam rate", low=0.0)
    ema: float = setting(0.99, "decay of the moving average that is the teacher", low=0.0, high=0.99999)
    expansion: int = setting(10, "token width M = expansion * K; attention has K heads", low=1)
    feed_forward_size: int = setting(2048, "hidden width of the feed-forward layers", low=1)
    dropout_rate: float = setting(0.2, "dropout in training", low=0.0, high=0.95)
    pooling: str = setting("sum", "over the expert tokens (public code: sum for K = 10, mean for K = 100)", choices=("sum", "mean"))


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    num_steps: int = setting(1500, "Adam steps of the student", low=0)
    samples_per_client: int = setting(32, "images of every client's generator in a step", low=1, high=MOST_IN_A_BATCH)
    teacher: str = setting(
        "mixture",
        "mixture: meta model over experts; expert_sum: sum of expert logits; uniform: mean of the clients' logits",
        choices=("mixture", "expert_sum", "uniform"),
    )
    label_prior: tuple[float, ...] = setting(
        (0.0, 0.5, 1.0),
        "strengths s of the teacher's prior s log(n[i,c] / n[i] + eps) on images of client i's generator; 0 is "
        "none; a student is distilled with each from the same images, and validation chooses",
        low=0.0,
        high=1.0,
    )
    label_prior_eps: float = setting(1e-3, "eps of the prior: the least share of images that a class is given", low=1e-9, high=1.0)
    learning_rate: float = setting(1e-4, "Adam rate", low=0.0)
    schedule: str = setting("constant", "of the learning rate", choices=("constant", "cosine"))
    temperature: float = setting(1.0, "softmax temperature T of the KL term", low=1e-3)
    kl_weight: float = setting(0.8, "weight of T^2 KL(teacher || student)", low=0.0)
    ce_weight: float = setting(0.2, "weight of the cross-entropy to the teacher's argmax", low=0.0)
    js_weight: float = setting(1.0, "weight of the symmetric term J", low=0.0)
    js: str = setting(
        "jensen_shannon", "J: the true divergence, or the public code's midpoint of logits", choices=("jensen_shannon", "midpoint")
    )
    student_batch_norm: str = setting(
        "batch",
        "BatchNorm of the student in the forward pass: batch moves its statistics, eval freezes them",
        choices=("batch", "eval"),
    )
    ema: float = setting(
        0.0, "decay of the student's moving average, which is judged and handed on; 0 is off", low=0.0, high=0.9999
    )
    sample_weights: str = setting("uniform", "weight of an image in the loss", choices=("uniform", "confidence", "client_size"))
    keep: str = setting(
        "best",
        "student handed on: the best by federated validation (step 0 included), or the last (of several the best then)",
        choices=("best", "last"),
    )
    evaluate_every: int = setting(25, "steps between looks at the student", low=1)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    keep: str = setting(
        "best",
        "model handed on: the best by federated validation at the looks (evaluation.every_rounds, the start included), or the last",
        choices=("best", "last"),
    )
    num_rounds: int = setting(39, "federated rounds after distillation", low=0, high=MOST_ROUNDS)
    client_learning_rate: float = setting(1e-4, "SGD learning rate of the clients", low=0.0)


@dataclasses.dataclass(frozen=True)
class FedProxConfig:
    mu: float = setting(0.01, "weight of the squared distance to the received model, halved", low=0.0)


@dataclasses.dataclass(frozen=True)
class FedRSConfig:
    alpha: float = setting(0.5, "factor of the logits of classes that a client does not hold", low=0.0, high=1.0)


@dataclasses.dataclass(frozen=True)
class FedAvgMConfig:
    server_learning_rate: float = setting(1.0, "server's rate eta; 1 and momentum 0 are FedAvg", low=0.0)
    momentum: float = setting(0.9, "decay of the server's momentum", low=0.0, high=0.9999)


@dataclasses.dataclass(frozen=True)
class FedAdamConfig:
    server_learning_rate: float = setting(0.01, "server's rate eta", low=0.0)
    beta1: float = setting(0.9, "first-moment decay", low=0.0, high=0.9999)
    beta2: float = setting(0.99, "second-moment decay", low=0.0, high=0.99999)
    tau: float = setting(1e-3, "added to the root of the second moment, which begins as its square", low=1e-9)


@dataclasses.dataclass(frozen=True)
class ScaffoldConfig:
    server_learning_rate: float = setting(1.0, "server's rate eta_g; 1 is the mean of the models", low=0.0)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every_rounds: int = setting(10, "rounds between checkpoints of warm-up and fine-tune", low=1)
    every_steps: int = setting(200, "steps between checkpoints of the other stages", low=1)
    keep: int = setting(2, "checkpoints kept of each stage", low=1)


@dataclasses.dataclass(frozen=True)
class MappingConfig:
    client_chunk: int = setting(
        0, "clients mapped together on a device; 0 is as many as fit into its memory (on a CPU 1), 1 one at a time", low=0
    )
    num_devices: int = setting(0, "devices of each process that share the clients; 0 is all, on a CPU one per core", low=0)
    expert_chunk: int = setting(0, "class experts run together; 0 is as many as fit into memory (on a CPU 1)", low=0)
    segment_steps: int = setting(50, "steps compiled into one program between looks at signals and losses", low=1)
    convolution: str = setting(
        "auto",
        "of convolutions over stacked weights; auto: on a CPU native, or map without a C++ compiler; on a GPU stacked "
        "(the fastest there of our kernels and cuDNN's), or grouped where no kernels of ours can run",
        choices=("auto", "grouped", "map", "native", "stacked"),
    )


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    limit_gib: float = setting(
        0.0, "GiB that a run may need on a device, on a CPU in all; refused if estimated at more; 0 is what there is", low=0.0
    )
    experts: str = setting(
        "auto",
        "class experts: stored, or each recomputed from the clients' models and label counts when it runs; "
        "auto stores them where they fit",
        choices=("auto", "stored", "recomputed"),
    )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    batch_size: int = setting(500, "images of one forward pass", low=1, high=MOST_IN_A_BATCH)
    every_rounds: int = setting(5, "rounds between validations of the global model", low=1)
