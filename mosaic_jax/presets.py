"""The presets: settings under one name, laid over those of a configuration file."""

from typing import Any

# The public code, exactly, where it differs from the method as intended, one field each, and its own rates and batch sizes after
# the warm-up. Sizes of networks, numbers of rounds and server steps, and the warm-up stay the configuration's.
REFERENCE: dict[str, Any] = {
    "data.image_range": "normalized",
    "warmup.order": "fixed",
    "generator.num_epochs": 200,
    "generator.batch_size": 64,
    "generator.learning_rate": 2e-4,
    "generator.beta1": 0.5,
    "generator.beta2": 0.999,
    "generator.discriminator": "separate",
    "generator.classifier": "local",
    "generator.classifier_num_epochs": 50,
    "generator.classifier_batch_norm": "train",
    "generator.entropy_weight": 0.0,
    "generator.diversity_weight": 5.0,
    "generator.inversion_weight": 0.0,
    "generator.augment": "none",
    "generator.real_target": 1.0,
    "generator.real_classes": "without_class_0",
    "generator.sampling_batch_norm": "eval",
    "generator.ema": 0.0,
    "prototypes.keep_per_class": 10,
    "prototypes.num_rounds": 0,
    "meta.batches_per_epoch": 1,
    "meta.batch_size": 128,
    "meta.learning_rate": 1e-3,
    "meta.ema": 0.99,
    "meta.feed_forward_size": 2048,
    "meta.dropout_rate": 0.2,
    "distill.teacher": "mixture",
    "distill.label_prior": (0.0,),
    "distill.samples_per_client": 32,
    "distill.learning_rate": 1e-4,
    "distill.schedule": "constant",
    "distill.temperature": 1.0,
    "distill.kl_weight": 0.8,
    "distill.ce_weight": 0.2,
    "distill.js_weight": 1.0,
    "distill.js": "midpoint",
    "distill.student_batch_norm": "eval",
    "distill.ema": 0.0,
    "distill.sample_weights": "uniform",
    "distill.keep": "last",
    "finetune.keep": "last",
    "finetune.client_learning_rate": 1e-4,
}
# The method as the paper describes it, without what was added here to make it work: the client's own classifier is the generator's
# discriminator and judge, and the last student is handed on.
PAPER: dict[str, Any] = {
    "generator.discriminator": "classifier",
    "generator.classifier": "client",
    "generator.augment": "none",
    "generator.real_target": 1.0,
    "generator.ema": 0.0,
    "distill.teacher": "mixture",
    "distill.label_prior": (0.0,),
    "distill.schedule": "constant",
    "distill.ema": 0.0,
    "distill.sample_weights": "uniform",
    "distill.keep": "last",
    "finetune.keep": "last",
}
PRESETS: dict[str, dict[str, Any]] = {"default": {}, "paper": PAPER, "reference": REFERENCE}
