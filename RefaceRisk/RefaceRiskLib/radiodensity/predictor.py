"""Two predictors of a number about the body from images of the head, behind one interface in scikit-learn's manner.

``prepare`` turns one image into what ``fit`` and ``predict`` take, and learns nothing; ``fit(X, y)`` and ``predict(X)``
are scikit-learn's. `LightPredictor` needs no GPU and takes seconds; `ResNetPredictor` is a 3-D ResNet of MONAI.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..errors import RefaceRiskError
from ..progress import OnProgress, report


class Predictor(Protocol):
    """`vectorised`: whether ``y`` may be (N, T), T targets predicted at once and each as if alone."""

    name: str
    vectorised: bool

    def prepare(self, image: np.ndarray, mm_per_template_mm: np.ndarray) -> np.ndarray: ...
    def fit(self, X: np.ndarray, y: np.ndarray, on_progress: OnProgress | None = None) -> Predictor: ...
    def predict(self, X: np.ndarray) -> np.ndarray: ...


@dataclass
class LightPredictor:
    """Features of skin, soft tissue and fat (`features`), standardised by block, principal components, ridge.

    Every step is fitted on the training subjects alone; the strength of the ridge is chosen among `strengths` by their
    leave-one-out error, for each target on its own (nested choice). The settings were fixed on simulated targets.

    components : principal components kept at most. strengths : ridge penalties in units of the mean variance of a
    component, times the number of subjects.
    """

    components: int = 20
    strengths: tuple[float, ...] = tuple(np.logspace(-1, 1, 7))
    name: str = "light"
    vectorised: bool = field(default=True, repr=False)

    def prepare(self, image: np.ndarray, mm_per_template_mm: np.ndarray) -> np.ndarray:
        """Features (P,) of an image (X, Y, Z) in template space."""
        from .features import features

        return features(image, mm_per_template_mm)

    def fit(self, X: np.ndarray, y: np.ndarray, on_progress: OnProgress | None = None) -> LightPredictor:
        """X (N, P) features; y (N,) or (N, T)."""
        from sklearn.linear_model import RidgeCV

        X, y = np.asarray(X, float), np.asarray(y, float)
        self._mean, self._weight = X.mean(axis=0), _block_weights(X)
        scaled = (X - self._mean) * self._weight
        # N subjects span at most N - 1 directions: the components come from the small (N, N) matrix.
        values, vectors = np.linalg.eigh(scaled @ scaled.T)
        keep = np.argsort(values)[::-1][: min(self.components, len(X) - 1)]
        keep = keep[values[keep] > 1e-9 * max(values.max(), 1e-300)]
        if not keep.size:
            self._axes, self._ridge, self._constant = None, None, y.mean(axis=0)
            return self
        self._axes = scaled.T @ (vectors[:, keep] / np.sqrt(values[keep]))
        self._unit = np.sqrt(values[keep].mean() / len(X))
        scores = scaled @ self._axes / self._unit
        penalties = np.asarray(self.strengths) * len(X)
        self._ridge = RidgeCV(alphas=penalties, alpha_per_target=y.ndim > 1).fit(scores, y)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(N,) or (N, T), as `fit` was given."""
        if self._axes is None:
            return np.broadcast_to(self._constant, (len(X), *np.shape(self._constant)))
        return self._ridge.predict((np.asarray(X, float) - self._mean) * self._weight @ self._axes / self._unit)


def _block_weights(X: np.ndarray) -> np.ndarray:
    """Weights (P,): unit variance for each feature, and equal shares for the blocks; constant features get none.

    Features of another number than `features` has are taken as one block.
    """
    from .features import blocks

    spread = X.std(axis=0)
    alive = spread > 1e-6 * max(float(spread.max()), 1e-300)
    weights = np.where(alive, 1 / np.where(alive, spread, 1), 0)
    parts = blocks().values()
    for part in parts if max(part.stop for part in parts) == X.shape[1] else ():
        weights[part] /= np.sqrt(max(int(alive[part].sum()), 1))
    return weights


@dataclass
class ResNetPredictor:
    """A 3-D ResNet (MONAI) on the head at 4 mm, trained with augmentation and stopped early inside the fold.

    A fifth of the training subjects is held out to tell when to stop and which epoch to keep; the test subjects are
    never seen. Augmentation: mirrored, shifted by up to 8 mm, brightness by up to 10 %, noise.

    width : channels of the first of four levels. epochs, patience : at most, and without an improvement.
    device : cpu, cuda, mps or auto.
    """

    width: int = 16
    epochs: int = 60
    patience: int = 12
    batch: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    seed: int = 0
    device: str = "auto"
    name: str = "resnet"
    vectorised: bool = field(default=False, repr=False)

    def prepare(self, image: np.ndarray, mm_per_template_mm: np.ndarray) -> np.ndarray:
        """Image (X/2, Y/2, Z/2) float32: means of 2 x 2 x 2 voxels."""
        x, y, z = image.shape
        return image.reshape(x // 2, 2, y // 2, 2, z // 2, 2).mean(axis=(1, 3, 5), dtype=np.float32)

    def fit(self, X: np.ndarray, y: np.ndarray, on_progress: OnProgress | None = None) -> ResNetPredictor:
        """X (N, X, Y, Z), y (N,). Raises Cancelled between two epochs when asked to stop."""
        import torch

        if len(X) < 5:
            raise RefaceRiskError(f"{len(X)} subjects are too few to train a network on", "use the light predictor")
        y = np.asarray(y, np.float32)
        rng = np.random.default_rng(self.seed)
        order = rng.permutation(len(X))
        held, used = np.split(order, [max(1, len(X) // 5)])
        self._centre, self._spread = float(y[used].mean()), float(y[used].std()) or 1.0
        device = _device(self.device)
        images = torch.from_numpy(np.ascontiguousarray(X, np.float32))[:, None]
        wanted = torch.from_numpy((y - self._centre) / self._spread)
        torch.manual_seed(self.seed)
        network = _resnet(self.width).to(device)
        optimiser = torch.optim.AdamW(network.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        best, since, kept = np.inf, 0, None
        for epoch in range(self.epochs):
            report(on_progress, "train", epoch, self.epochs, f"best error {best:.3f}" if kept else "")
            network.train()
            for some in np.array_split(rng.permutation(used), max(1, round(len(used) / self.batch))):
                loss = torch.nn.functional.mse_loss(
                    network(_augmented(images[some], rng).to(device))[:, 0], wanted[some].to(device)
                )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            error = float(np.mean((self._run(network, images[held], device) - wanted[held].numpy()) ** 2))
            since += 1
            if error < best:
                best, since = error, 0
                kept = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
            if since >= self.patience:
                break
        if kept is None:  # an error that is not a number
            raise RefaceRiskError("the training of the network diverged", "lower learning_rate")
        network.load_state_dict(kept)
        self._network, self.epochs_run, self.error = network, epoch + 1, best
        report(on_progress, "train", self.epochs, self.epochs, f"best error {best:.3f}")
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(N,) predictions in the unit of the target."""
        import torch

        images = torch.from_numpy(np.ascontiguousarray(X, np.float32))[:, None]
        return self._run(self._network, images, _device(self.device)) * self._spread + self._centre

    def _run(self, network, images, device) -> np.ndarray:
        import torch

        network.eval()
        with torch.no_grad():
            parts = [network(part.to(device))[:, 0].cpu() for part in images.split(self.batch)]
        return torch.cat(parts).numpy()


def _resnet(width: int):
    from monai.networks.nets import ResNet

    return ResNet(
        "basic",
        layers=[1, 1, 1, 1],
        block_inplanes=[width, 2 * width, 4 * width, 8 * width],
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_size=5,
        conv1_t_stride=2,
        num_classes=1,
        norm=("group", {"num_groups": 8}),  # a batch of eight heads is too few for batch norm
    )


def _augmented(images, rng: np.random.Generator):
    """(B, 1, X, Y, Z), each head mirrored, shifted by up to 2 voxels, rescaled in brightness, with noise."""
    import torch

    changed = []
    for image in images:
        moved = torch.roll(image, tuple(int(n) for n in rng.integers(-2, 3, 3)), dims=(1, 2, 3))
        mirrored = moved.flip(1) if rng.random() < 0.5 else moved
        noise = torch.from_numpy(rng.normal(0, 0.03, image.shape).astype(np.float32))
        changed.append(mirrored * float(rng.uniform(0.9, 1.1)) + noise)
    return torch.stack(changed)


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


PREDICTORS: dict[str, Callable[[], Predictor]] = {"light": LightPredictor, "resnet": ResNetPredictor}


def make_predictor(name: str) -> Predictor:
    """A predictor by name. Raises RefaceRiskError for an unknown one."""
    if name not in PREDICTORS:
        raise RefaceRiskError(f"unknown predictor {name!r}", f"choose one of {', '.join(PREDICTORS)}")
    return PREDICTORS[name]()
