"""The terms of a pass of D, and of G, where more than the plain adversarial loss is asked for.

Penalties, augmentation, the auxiliary classifier and losses of pairs are put together here, so that D has one forward
for each pass, over all images that any of them wants to see, and one backward. What they remember is here too.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_utils.precision import full_precision
from training import augmentation, penalties
from training.augmentation import AugmentationOptions
from training.auxiliary import AuxiliaryOptions, d2d_cross_entropy
from training.batches import Draw
from training.optimizers import OptimizerOptions
from training.penalties import DIFFERENCE, SHARE, PenaltyOptions

REAL, FAKE = 0, 1  # whose random numbers


@dataclass(frozen=True)
class Techniques:
    """What is asked for, by the flags of each concern.

    paired: whether the loss compares reals with fakes; relative: whether it leaves open which logit is 0; auxiliary:
    None without --D_aux; schedule: the steps between which the penalties' gammas change; passes, updates: of D, in an
    update and in a step.
    """

    penalties: PenaltyOptions
    augmentation: AugmentationOptions
    auxiliary: AuxiliaryOptions | None
    paired: bool
    relative: bool
    schedule: OptimizerOptions
    passes: int
    updates: int

    @property
    def on(self) -> bool:
        return self.penalties.on or self.augmentation.on or self.auxiliary is not None or self.paired

    def update(self, draw: Draw) -> int:
        """The number, from 0, of the update of D that a pass is part of."""
        return (draw.step - 1) * self.updates + draw.number // self.passes

    def gamma(self, name: str, draw: Draw) -> float:
        """The strength of r1 or r2 in a pass: 0 where it is not due, else --r1_every times what it is."""
        start, end, every = (getattr(self.penalties, f"{name}_{of}") for of in ("gamma", "gamma_to", "every"))
        if self.update(draw) % every:
            return 0.0
        return every * (start if end is None else start + (end - start) * self.schedule.progress(draw.step))

    def D_images(self) -> float:
        """Images that D sees in its own steps for each real one, on average over updates."""
        chosen = self.penalties
        moved = (chosen.cr > 0) + 2 * (chosen.bcr > 0) + (chosen.zcr > 0)
        near = [n for n in ("r1", "r2") if getattr(chosen, f"{n}_gamma") and n not in chosen.exact]
        return 2 + moved + sum(1 / SHARE / getattr(chosen, f"{n}_every") for n in near)

    def derivatives(self) -> float:
        """For how many images for each real one D's gradient is differentiated once more, on average over updates.

        They are all of a pass, since its images go through D together. It costs about three forwards of each: the
        gradient, and then its own of weights and of what came before it.
        """
        return self.D_images() * sum(1 / getattr(self.penalties, f"{n}_every") for n in self.penalties.exact)

    @property
    def lazy(self) -> list[str]:
        """Which of r1 and r2 are not due in each update."""
        chosen = self.penalties
        return [n for n in ("r1", "r2") if getattr(chosen, f"{n}_gamma") and getattr(chosen, f"{n}_every") > 1]


class Kind(NamedTuple):
    """Reals or fakes of a pass of D. penalty: on D's gradient at them; part: whose random numbers; images: as they are
    before augmentation."""

    name: str
    penalty: str
    part: int
    images: Tensor
    y: Tensor


class Regularisation:
    """Techniques with what they remember, all of which is moved once an update of D and the same on all ranks.

    strength: ADA's p; signs: the sum of the signs of D's logits of reals (of a relative loss: less the fakes') since
    it was moved, of `num_signs` images in `num_updates`; averages: LeCam's, of the logits of reals and of fakes; last:
    penalties that are not due in each update, as they were last, without the factor that makes up for it.
    """

    def __init__(self, techniques: Techniques, device: torch.device):
        self.techniques = techniques
        self.strength, self.signs = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
        self.averages = torch.zeros(2, dtype=torch.float64, device=device)
        self.last = {}
        self.num_signs = self.num_updates = 0
        self._begin_update()

    def _begin_update(self):
        self._sums = torch.zeros(3, dtype=torch.float64, device=self.averages.device)
        self._num_images, self._draw = 0, None

    def d_terms(
        self,
        G: Module,
        forward_D: Module,
        loss: Callable,
        x: Tensor,
        y: Tensor,
        z: Tensor,
        y_fake: Tensor,
        draw: Draw,
    ) -> dict[str, Tensor]:
        """The terms of a pass of D, which add up to its loss; arguments as a pass of `steps.d_step`."""
        chosen, D = self.techniques.penalties, getattr(forward_D, "module", forward_D)
        gammas = {name: gamma for name in ("r1", "r2") if (gamma := self.techniques.gamma(name, draw))}
        exact = set(chosen.exact) & gammas.keys()
        with torch.no_grad():
            fakes, near_fakes = self._fakes(G, z, y_fake, draw)
        kinds = [
            Kind("real", "r1", REAL, x.detach().requires_grad_("r1" in exact), y),
            Kind("fake", "r2", FAKE, fakes.detach().requires_grad_("r2" in exact), y_fake),
        ]
        seen = self._seen(kinds, gammas.keys() - exact, draw)
        if near_fakes is not None:
            seen["fake of near z"] = self._augmented(near_fakes, draw, FAKE), y_fake
        with _for_derivatives(D, bool(gammas), bool(exact)):
            logits, embeddings = self._forward(forward_D, seen)
            terms = dict(loss(logits["real"], logits["fake"]))
            for name, images, kind in ((kind.penalty, kind.images, kind.name) for kind in kinds):
                if name in exact:
                    terms[f"D_{name}"] = gammas[name] / 2 * penalties.squared_gradient(logits[kind], images)
                elif name in gammas:
                    terms[f"D_{name}"] = gammas[name] / 2 * self._squared_difference(logits, kind, draw)
        terms |= self._terms_of_logits(logits, draw)
        if self.techniques.auxiliary:
            terms["D_d2dce"] = self._d2dce(*(t["real"] for t in embeddings), y, draw)
        self._note(logits["real"], logits["fake"], draw)
        return terms

    def _seen(self, kinds, approximated, draw):
        """What D is to see of reals and fakes, and their classes, by name: augmented, moved for consistency, and with
        noise for the penalties that are `approximated`."""
        chosen, seen = self.techniques.penalties, {}
        for kind in kinds:
            seen[kind.name] = self._augmented(kind.images, draw, kind.part), kind.y
        for kind in kinds:
            if chosen.bcr or (chosen.cr and kind.name == "real"):
                u = draw.uniform("consistency", kind.part, augmentation.CONSISTENCY_NUMBERS)
                seen[f"{kind.name} moved"] = augmentation.flip_and_shift(seen[kind.name][0], u), kind.y
            if kind.penalty in approximated:
                rows, noise = draw.share("difference", kind.part, SHARE, kind.images.shape[1:])
                near = kind.images[rows] + DIFFERENCE * noise.to(kind.images.dtype)
                seen[f"{kind.name} near"] = self._augmented(near, draw, kind.part, rows), kind.y[rows]
        return seen

    def _terms_of_logits(self, logits, draw):
        """LeCam and consistency, of logits by what D has seen."""
        chosen, terms = self.techniques.penalties, {}
        if chosen.lecam and draw.step > chosen.lecam_start:
            averages = self.averages.to(logits["real"].dtype)
            term = penalties.lecam(logits["real"], logits["fake"], *averages)
            # The first update after --allow_change lecam has no averages yet.
            terms["D_lecam"] = chosen.lecam * term * self.averages.any()
        for kind in ("real", "fake"):
            if f"{kind} moved" in logits:
                name, strength = (f"D_bcr_{kind}", chosen.bcr) if chosen.bcr else ("D_cr", chosen.cr)
                terms[name] = strength * penalties.consistency(logits[kind], logits[f"{kind} moved"])
        if chosen.zcr:
            terms["D_zcr"] = chosen.zcr * penalties.consistency(logits["fake"], logits["fake of near z"])
        return terms

    def g_terms(
        self,
        forward_G: Module,
        D: Module,
        loss: Callable,
        z: Tensor,
        y: Tensor,
        x: Tensor | None,
        draw: Draw,
    ) -> dict[str, Tensor]:
        """The terms of a pass of G; x: real images of the classes y (N,), where the loss is one of pairs."""
        fakes, near_fakes = self._fakes(forward_G, z, y, draw)
        logits, embeddings = self._forward(D, {"fake": (self._augmented(fakes, draw, FAKE), y)})
        reals = []
        if self.techniques.paired:
            with torch.no_grad():
                reals = [self._forward(D, {"real": (self._augmented(x, draw, REAL), y)})[0]["real"]]
        terms = dict(loss(logits["fake"], *reals))
        if near_fakes is not None:
            difference = penalties.consistency(fakes, near_fakes)
            terms["G_zcr"] = -self.techniques.penalties.zcr_gen * difference
        if self.techniques.auxiliary:
            terms["G_d2dce"] = self._d2dce(*(t["fake"] for t in embeddings), y, draw)
        return terms

    def _fakes(self, forward_G, z, y, draw):
        """Fakes of z, and with --zcr of z near them, else None: of one forward, pair by pair."""
        if not self.techniques.penalties.zcr:
            return forward_G(z, y), None
        near = z + self.techniques.penalties.zcr_radius * draw.normal("near_z", 0, *z.shape[1:]).to(z.dtype)
        both = forward_G(torch.stack([z, near], 1).flatten(0, 1), y.repeat_interleave(2))
        return both[0::2], both[1::2]

    def _augmented(self, images, draw, part, rows=slice(None)):
        """As D sees them; rows: which images of the pass these are."""
        chosen = self.techniques.augmentation
        if chosen.diffaug != "none":
            u = draw.uniform("augment", part, augmentation.DIFFAUG_NUMBERS)[rows]
            return augmentation.diffaugment(images, u, chosen.diffaug)
        if chosen.ada_target:
            u = draw.uniform("augment", part, augmentation.ADA_UNIFORM)[rows]
            e = draw.normal("augment", part, augmentation.ADA_NORMAL)[rows]
            return augmentation.ada(images, u, e, self.strength, chosen.ada_policy)
        return images

    def _forward(self, forward_D, seen):
        """Logits by kind of image, and (embeddings, proxies), each by kind, where D has an auxiliary classifier."""
        images, classes = zip(*seen.values(), strict=True)
        sizes = [len(each) for each in classes]
        asked = {"embed": True} if self.techniques.auxiliary else {}
        outputs = forward_D(torch.cat(images), torch.cat(classes), **asked)
        logits, *embeddings = [
            dict(zip(seen, output.split(sizes), strict=True)) for output in (outputs if asked else [outputs])
        ]
        return logits, embeddings

    def _squared_difference(self, logits, kind, draw):
        """The mean over each fourth image of the pass, of all ranks; of which each has about as many."""
        rows, _ = draw.rows_of_share(SHARE)
        squares = penalties.squared_difference(logits[kind][rows], logits[f"{kind} near"])
        return squares.sum() * draw.ranks.world_size / -(-draw.size // SHARE)

    def _d2dce(self, embeddings, proxies, y, draw):
        chosen = self.techniques.auxiliary
        how = chosen.D_aux_margin, chosen.D_aux_temperature, draw.ranks
        return chosen.D_aux_weight * d2d_cross_entropy(embeddings, proxies, y, *how)

    def backward_precision(self, draw: Draw) -> contextlib.AbstractContextManager:
        """In which the backward of a pass of D is to run: as its forward, without TF32 where a penalty is due."""
        due = any(self.techniques.gamma(name, draw) for name in ("r1", "r2"))
        return full_precision(self.averages.device.type) if due else contextlib.nullcontext()

    # -----------------------------------------------------------------------------------------------------------------
    # What is remembered

    def _note(self, real_logits, fake_logits, draw):
        real, fake = real_logits.detach().double(), fake_logits.detach().double()
        above = real - fake if self.techniques.relative else real
        signs = (above > 0).double() - (above < 0).double()  # of what is not a number: 0
        self._sums += torch.stack([signs.sum(), real.sum(), fake.sum()])
        self._num_images, self._draw = self._num_images + draw.size, draw

    def finish_update(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """After an update of D: move what is remembered. Returns: its terms, completed by what else is to be logged."""
        chosen, draw, lazy = self.techniques.penalties, self._draw, {}
        for name in self.techniques.lazy:
            if f"D_{name}" in terms:
                lazy[f"D_{name}"] = terms[f"D_{name}"].double() / getattr(chosen, f"{name}_every")
        sums = torch.stack([*self._sums, *lazy.values()])
        if draw.ranks.world_size > 1 and (chosen.lecam or self.techniques.augmentation.ada_target or lazy):
            torch.distributed.all_reduce(sums)
        signs, *logits = sums[:3]
        for name, value in zip(lazy, sums[3:] / draw.ranks.world_size, strict=True):
            self.last[name] = _finite(value, self.last.get(name, torch.zeros_like(value)))
        if chosen.lecam:
            self._move_averages(torch.stack(logits) / self._num_images, draw.step)
        shown = {}
        if self.techniques.augmentation.ada_target:
            self._move_strength(signs)
            shown["ada_p"] = self.strength.float()
        self._begin_update()
        # Not those of a checkpoint of before --allow_change.
        last = {key: self.last[key].float() for name in self.techniques.lazy if (key := f"D_{name}") in self.last}
        return terms | last | shown

    def _move_averages(self, means, step):
        chosen = self.techniques.penalties
        decay = chosen.lecam_decay if step > chosen.lecam_start else 0.0
        moved = torch.where(self.averages.any(), means.lerp(self.averages, decay), means)
        self.averages = _finite(moved, self.averages)

    def _move_strength(self, signs):
        chosen = self.techniques.augmentation
        self.signs += signs
        self.num_signs, self.num_updates = self.num_signs + self._num_images, self.num_updates + 1
        if self.num_updates == augmentation.ADA_UPDATES:
            step = (self.signs / self.num_signs - chosen.ada_target).sign() * self.num_signs / (1000 * chosen.ada_kimg)
            self.strength = (self.strength + step).clamp(0, 1)
            self.signs.zero_()
            self.num_signs = self.num_updates = 0

    def state_dict(self) -> dict:
        """Plain numbers."""
        return {
            "strength": self.strength.item(),
            "signs": self.signs.item(),
            "num_signs": self.num_signs,
            "num_updates": self.num_updates,
            "averages": self.averages.tolist(),
            "last": {name: value.item() for name, value in self.last.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Raises: KeyError, TypeError, ValueError or RuntimeError for what is none."""
        for name in ("strength", "signs", "averages"):
            getattr(self, name).copy_(torch.tensor(state[name], dtype=torch.float64))
        self.num_signs, self.num_updates = int(state["num_signs"]), int(state["num_updates"])
        device = self.averages.device
        self.last = {n: torch.tensor(v, dtype=torch.float64, device=device) for n, v in state["last"].items()}


def _finite(values, before):
    """An update that float16's loss scale leaves out is not to leave its infinities in what is remembered."""
    return torch.where(values.isfinite(), values, before)


@contextlib.contextmanager
def _for_derivatives(D, wanted, second):
    """Where D's gradient or finite difference is wanted, D computes in float32 whatever --amp says; where it is to be
    differentiated once more (`second`), attention takes the kernel that can be."""
    if not wanted:
        yield
        return
    amp, device_type = D.amp, next(D.parameters()).device.type
    D.amp = None
    try:
        with full_precision(device_type), sdpa_kernel(SDPBackend.MATH) if second else contextlib.nullcontext():
            yield
    finally:
        D.amp = amp
