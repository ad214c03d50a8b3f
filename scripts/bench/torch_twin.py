"""The PyTorch twin: the work of a row as a PyTorch user writes it, one client after another. Loads no JAX."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.rows import NUM_CLASSES, Task
from bench.torch_models import Discriminator, Generator, Meta, build_classifier

Losses = dict[str, np.ndarray]


class Variant(NamedTuple):
    """One way to run the twin; the fastest of those that apply is what ours is compared with."""

    channels_last: bool = False
    amp: bool = False
    compile: bool = False

    def __str__(self) -> str:
        names = ("channels_last", self.channels_last), ("amp bf16", self.amp), ("torch.compile", self.compile)
        return ", ".join([name for name, on in names if on]) or "eager"


def variants(stage: str) -> tuple[Variant, ...]:
    """Eager in both memory formats on a CPU; on a GPU also mixed precision, and that compiled. The meta model has no images."""
    formats = (False,) if stage == "meta" else (False, True)
    cuda = torch.cuda.is_available()
    eager = tuple(Variant(*choice) for choice in itertools.product(formats, (False, True) if cuda else (False,)))
    # The compiler lays images out with channels last by itself: one variant is enough of what takes a minute to compile.
    return (*eager, Variant(channels_last=stage != "meta", amp=True, compile=True)) if cuda else eager


class Twin:
    """A row's work in one variant: every call is one pass, from where the last one ended, and hands back its losses."""

    def __init__(self, task: Task, variant: Variant) -> None:
        self.variant, self.config, self.steps = variant, task.row.config, task.row.steps
        self.task = task._replace(images=task.images[:0].copy())  # torch holds them
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
        self.images = torch.from_numpy(np.ascontiguousarray(task.images.transpose(0, 3, 1, 2))).to(self.device)
        self.labels = torch.tensor(task.labels, dtype=torch.long, device=self.device)
        self.indices = torch.tensor(task.indices, dtype=torch.long, device=self.device)
        self.noise = torch.tensor(task.noise, device=self.device)
        stages = {"warmup": Round, "generators": Gan, "distill": Distillation, "meta": MetaTraining}
        self.work: Callable[[], dict[str, list[torch.Tensor]]] = stages[task.row.stage](self)

    def __call__(self) -> Losses:
        """One pass -> losses f32[T], or f32[C, T] for work of the clients, names and values as ours."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.variant.amp):
            losses = {name: torch.stack(values).float().cpu().numpy() for name, values in self.work().items()}
        if self.task.row.stage == "warmup":
            return {name: values.reshape(-1, self.steps).mean(1, keepdims=True) for name, values in losses.items()}
        if self.task.row.stage == "generators":
            return {name: values.reshape(-1, self.steps) for name, values in losses.items()}
        return losses

    def count_flops(self) -> tuple[Losses, int]:
        """One pass, and the floating-point operations of its convolutions and matrix products."""
        with FlopCounterMode(display=False) as counter:
            losses = self()
        return losses, counter.get_total_flops()

    def network(self, module: nn.Module, weights: dict[str, np.ndarray]) -> nn.Module:
        """`module` with these weights, where and how this variant keeps it."""
        # Only BatchNorm's counters are left as they are.
        missing, unknown = module.load_state_dict({name: torch.tensor(w) for name, w in weights.items()}, strict=False)
        if unknown or any(not name.endswith("num_batches_tracked") for name in missing):
            raise ValueError(f"the twin's network does not have our weights: missing {missing}, unknown {unknown}")
        module = module.to(self.device, memory_format=torch.channels_last if self.variant.channels_last else torch.preserve_format)
        if self.variant.compile:
            module.compile()
        return module

    def networks(self, kind: str) -> list[nn.Module]:
        """The networks of one kind, in train mode, as many as the task has weights for."""
        config = self.config
        build = {
            "classifier": lambda: build_classifier(config.model.name, config.model.width, NUM_CLASSES),
            "generator": lambda: Generator(config.generator.width, config.generator.latent_size),
            "discriminator": lambda: Discriminator(config.generator.width),
            "meta": lambda: Meta(
                NUM_CLASSES, config.meta.expansion, config.meta.feed_forward_size, config.meta.dropout_rate
            ),
        }  # fmt: skip
        build["experts"] = build["classifier"]
        return [self.network(build[kind](), weights) for weights in self.task.weights[kind]]

    def batch(self, chosen: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] of these positions: i64[B] -> float[B, 3, 32, 32]."""
        images = self.images[chosen].to(torch.float32).div_(127.5).sub_(1.0)
        return images.contiguous(memory_format=torch.channels_last) if self.variant.channels_last else images


class Round:
    """A federated round: each client trains the received model by SGD; the server averages parameters and statistics."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        (self.model,) = twin.networks("classifier")
        self.tensors = [tensor for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
        self.global_ = [tensor.clone() for tensor in self.tensors]
        self.shares = (twin.task.sizes / twin.task.sizes.sum()).tolist()

    def __call__(self) -> dict[str, list[torch.Tensor]]:
        twin, settings, losses = self.twin, self.twin.config.warmup, []
        total = [torch.zeros_like(tensor) for tensor in self.tensors]
        for client, share in enumerate(self.shares):
            with torch.no_grad():
                for own, received in zip(self.tensors, self.global_, strict=True):
                    own.copy_(received)
            optimizer = torch.optim.SGD(
                self.model.parameters(), settings.client_learning_rate, weight_decay=settings.weight_decay, fused=True
            )
            for chosen in twin.indices[client]:
                optimizer.zero_grad()
                loss = F.cross_entropy(self.model(twin.batch(chosen)), twin.labels[chosen])
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            with torch.no_grad():
                for sum_, own in zip(total, self.tensors, strict=True):
                    sum_.add_(own, alpha=share)
        self.global_ = total
        return {"loss": losses}


class Gan:
    """GAN steps of each client: the discriminator on real and generated images, then the generator through it."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        settings = twin.config.generator
        betas = (settings.beta1, settings.beta2)
        self.clients = []
        for pair in zip(twin.networks("generator"), twin.networks("discriminator"), strict=True):
            optimizers = [torch.optim.Adam(net.parameters(), settings.learning_rate, betas, fused=True) for net in pair]
            self.clients.append((*pair, *optimizers))

    def __call__(self) -> dict[str, list[torch.Tensor]]:
        twin, real_target = self.twin, self.twin.config.generator.real_target
        losses: dict[str, list[torch.Tensor]] = {"discriminator_loss": [], "generator_loss": []}
        bce = lambda scores, target: F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, target))  # noqa: E731
        for client, (generator, discriminator, generator_optimizer, discriminator_optimizer) in enumerate(self.clients):
            for step, chosen in enumerate(twin.indices[client]):
                fake = generator(twin.noise[step, client])
                discriminator_optimizer.zero_grad()
                loss = bce(discriminator(twin.batch(chosen)), real_target) + bce(discriminator(fake.detach()), 0.0)
                loss.backward()
                discriminator_optimizer.step()
                losses["discriminator_loss"].append(loss.detach())
                generator_optimizer.zero_grad()
                discriminator.requires_grad_(False)
                loss = bce(discriminator(fake), 1.0)
                loss.backward()
                discriminator.requires_grad_(True)
                generator_optimizer.step()
                losses["generator_loss"].append(loss.detach())
        return losses


class Distillation:
    """Steps of the student on generated images under the meta model over the experts."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        (self.student,) = twin.networks("classifier")
        self.generators = twin.networks("generator")
        self.experts = [expert.eval() for expert in twin.networks("experts")]
        self.meta = twin.networks("meta")[0].eval()
        self.optimizer = torch.optim.Adam(self.student.parameters(), twin.config.distill.learning_rate, fused=True)

    def __call__(self) -> dict[str, list[torch.Tensor]]:
        settings = self.twin.config.distill
        losses: dict[str, list[torch.Tensor]] = {"loss": [], "kl": [], "ce": [], "js": []}
        for noise in self.twin.noise:
            with torch.no_grad():
                images = torch.cat([generator(own) for generator, own in zip(self.generators, noise, strict=True)])
                teacher = self.meta(torch.stack([expert(images) for expert in self.experts], dim=1))
                log_t = F.log_softmax(teacher, dim=1)
            self.optimizer.zero_grad()
            student = self.student(images)
            log_s = F.log_softmax(student, dim=1)
            log_m = torch.logaddexp(log_s, log_t) - np.log(2.0)
            kl = F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
            ce = F.cross_entropy(student, teacher.argmax(1))
            js = 0.5 * (log_s.exp() * (log_s - log_m) + log_t.exp() * (log_t - log_m)).sum(1).mean()
            loss = settings.kl_weight * kl + settings.ce_weight * ce + settings.js_weight * js
            loss.backward()
            self.optimizer.step()
            for name, value in zip(losses, (loss, kl, ce, js), strict=True):
                losses[name].append(value.detach())
        return losses


class MetaTraining:
    """Adam steps of the meta model on prototypes, and the moving average of its parameters."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        (self.model,) = twin.networks("meta")
        self.average = [parameter.detach().clone() for parameter in self.model.parameters()]
        self.optimizer = torch.optim.Adam(self.model.parameters(), twin.config.meta.learning_rate, fused=True)
        self.logits = torch.tensor(twin.task.logits, device=twin.device)
        self.labels = torch.tensor(twin.task.prototype_labels, dtype=torch.long, device=twin.device)

    def __call__(self) -> dict[str, list[torch.Tensor]]:
        losses = []
        for chosen in self.twin.indices:
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(self.logits[chosen]), self.labels[chosen])
            loss.backward()
            self.optimizer.step()
            with torch.no_grad():
                for average, parameter in zip(self.average, self.model.parameters(), strict=True):
                    average.lerp_(parameter, 1.0 - self.twin.config.meta.ema)
            losses.append(loss.detach())
        return {"loss": losses}
