"""PyTorch networks with the names and the mathematics of ours, as `mosaic_jax.io.torch_weights.to_torch` names their tensors."""

import torch
import torch.nn.functional as F
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut: float[B, I, H, W] -> float[B, O, H / stride, W / stride]."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.bn1(self.conv1(images)), inplace=True)
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(images), inplace=True)


class ResNet18(nn.Module):
    """float[B, 3, 32, 32] -> logits float[B, K], with a 3x3 stem."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage in range(4):
            out = width * 2**stage
            blocks = [BasicBlock(channels, out, 2 if stage else 1), BasicBlock(out, out, 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            channels = out
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.bn1(self.conv1(images)), inplace=True)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden = layer(hidden)
        return self.linear(hidden.mean((2, 3)))


class CNN(nn.Module):
    """float[B, 3, 32, 32] -> logits float[B, K]: four 3x3 convolutions, the last three at stride 2."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        channels = 3
        for index in range(4):
            out = width * 2**index
            setattr(self, f"conv{index + 1}", nn.Conv2d(channels, out, 3, 2 if index else 1, 1, bias=False))
            setattr(self, f"bn{index + 1}", nn.BatchNorm2d(out))
            channels = out
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = images
        for index in range(1, 5):
            hidden = F.relu(getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(hidden)), inplace=True)
        return self.linear(hidden.mean((2, 3)))


class Generator(nn.Module):
    """noise float[B, Z] -> images float[B, 3, 32, 32] in [-1, 1]."""

    def __init__(self, width: int, latent_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = latent_size
        for multiple, stride, padding in ((8, 1, 0), (4, 2, 1), (2, 2, 1), (1, 2, 1)):
            out = multiple * width
            convolution = nn.ConvTranspose2d(channels, out, 4, stride, padding, bias=False)
            layers += [convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            channels = out
        self.main = nn.Sequential(*layers, nn.ConvTranspose2d(channels, 3, 1, bias=False), nn.Tanh())

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.main(noise[:, :, None, None])


class Discriminator(nn.Module):
    """images float[B, 3, 32, 32] -> score logits float[B]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for multiple in (1, 2, 4, 8):
            layers.append(nn.Conv2d(channels, multiple * width, 4, 2, 1, bias=False))
            layers += [nn.BatchNorm2d(multiple * width)] if multiple > 1 else []
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            channels = multiple * width
        self.main = nn.Sequential(*layers, nn.Conv2d(channels, 1, 2, 2, bias=False))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.main(images)[:, 0, 0, 0]


class Meta(nn.Module):
    """expert logits float[B, E, K] -> logits float[B, K]: one encoder and one decoder layer over the experts, summed."""

    def __init__(self, num_classes: int, expansion: int, feed_forward_size: int, dropout_rate: float) -> None:
        super().__init__()
        width = expansion * num_classes
        self.fc_expand = nn.Linear(num_classes, width)
        self.transformer = nn.Transformer(width, num_classes, 1, 1, feed_forward_size, dropout_rate, batch_first=True)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, expert_logits: torch.Tensor) -> torch.Tensor:
        tokens = self.fc_expand(expert_logits)
        return self.fc(self.transformer(tokens, tokens).sum(1))


def build_classifier(name: str, width: int, num_classes: int) -> nn.Module:
    """The classifier that `model.name` names: resnet18 or cnn."""
    return {"resnet18": ResNet18, "cnn": CNN}[name](width, num_classes)
