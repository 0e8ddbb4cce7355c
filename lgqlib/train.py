"""The training loop: all that happens to a run between its config and its last checkpoint."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.optim import AdamW, Optimizer
from tqdm.auto import tqdm

from lgqlib.config import Config
from lgqlib.data import evaluation_images, identified, load, to_model, training_batches
from lgqlib.evaluate import evaluate
from lgqlib.losses import PatchDiscriminator, TokenizerLoss, discriminator_loss, frozen
from lgqlib.quantizers.base import NonFinite
from lgqlib.run import Checkpoint, Run, Snapshot
from lgqlib.tokenizer import Reconstruction, Tokenizer

LIGHT_EVALUATION = 128  # held-out images that an evaluation during training looks at
STOP_EVERY = 8  # steps between the times that processes ask each other if one was told to stop
TAU_C_EVERY = 8  # steps between refreshments of tau_c, whose eigenvalues would hold a GPU up


class NonFiniteLoss(RuntimeError):
    """A loss that is no longer a number: the run stops, its checkpoints stay."""


def train(config: Config, run: Run, *, cache: Path | str, progress: bool = True) -> None:
    """Train `config` into `run`, from where it was left; return when all steps are done.

    A finished run goes on as another, which keeps its weights, optimizer and history, with
    schedules of the new number of steps: `Run.create(root, run.config.override({"train.num_steps":
    600, "train.after": run.name}))`. `cache`: folder of data stores. Ctrl-C and SIGTERM save a
    checkpoint, then leave with KeyboardInterrupt or SystemExit. Raises NonFiniteLoss with the step,
    the terms and the last good checkpoint; RuntimeError when another process holds the run;
    ValueError when the checkpoint or the images do not belong to the run.
    """
    if run.is_complete:
        return
    identified(config.override({"data.content": run.config.data.content}))  # ValueError for others
    AcceleratorState._reset_state()  # what an earlier run of this process left: its precision
    accelerator = Accelerator(mixed_precision=config.train.precision)
    main = accelerator.is_main_process
    with run.locked() if main else nullcontext(), stop_signals() as received:
        job = Job(config, run, accelerator, cache=Path(cache))
        if main:
            run.rewind_metrics(job.step)
        silent = not (progress and main)
        stop, total = 0, config.train.num_steps
        with tqdm(total=total, initial=job.step, desc=run.name, unit="step", disable=silent) as bar:
            while job.step < total and not (stop := job.stop_signal(received)):
                job.advance(bar)
        if total == 0:
            job.evaluate()
        if job.step > job.saved or total == 0:
            job.save()
    stop = stop or next(iter(received), 0)  # also one that came with the last step
    if stop:
        raise KeyboardInterrupt if stop == signal.SIGINT else SystemExit(128 + stop)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one acts at once."""
    received: list[int] = []
    previous = {}

    def note(number: int, _frame) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    with suppress(ValueError):  # not in the main thread, where signals are somebody else's
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Job:
    """What training changes: weights, optimizers, averages, counts; `advance` is one step of it."""

    def __init__(self, config: Config, run: Run, accelerator: Accelerator, *, cache: Path):
        self.config, self.run, self.accelerator = config, run, accelerator
        self.device = accelerator.device
        data = config.data
        self.images = load(data, "train", cache=cache)
        ranks = dict(rank=accelerator.process_index, world_size=accelerator.num_processes)
        self.batches = training_batches(config, self.images, device=self.device, **ranks)
        held_out = load(data, "val", cache=cache)
        self.held_out, _, _ = evaluation_images(held_out, size=data.size, limit=data.eval_crops)

        torch.manual_seed(config.seed)
        self.tokenizer = Tokenizer(config).to(self.device)
        self.loss = TokenizerLoss(config.loss).to(self.device)
        self.judge = PatchDiscriminator().to(self.device) if config.loss.adversarial else None
        checkpoint = run.load_checkpoint()
        if checkpoint is None:
            self._initialize()
        else:
            with run.fitting(checkpoint):
                self.tokenizer.load_state_dict(checkpoint.tensors["tokenizer"])
        self._prepare()

        self.step = self.saved = 0
        self.tau, self.tau_c = math.nan, self.tokenizer.tau_c
        # Uses of each code since the last log line, and since the last snapshot.
        codes = config.quantizer.num_codes
        self.counts = torch.zeros(2, codes, dtype=torch.int64, device=self.device)
        self.last_used = torch.full((codes,), -1, dtype=torch.int64, device=self.device)
        self.snapshot_steps = snapshot_steps(config.train.num_steps, config.train.num_snapshots)
        if checkpoint is not None:
            with run.fitting(checkpoint):
                self._restore(checkpoint)
        elif 0 in self.snapshot_steps:
            self._snapshot()
        self.clock, self.clock_step = time.perf_counter(), self.step

    @torch.no_grad()
    def _initialize(self) -> None:
        """Start the tokenizer from real batches, the same on every rank."""
        config, tokenizer = self.config, self.tokenizer
        whole = training_batches(config, self.images, device=self.device)
        num_codes, tokens = config.quantizer.num_codes, config.latent_side**2
        batch = config.train.batch_size * tokens
        steps = range(math.ceil(tokenizer.quantizer.start_latents / batch))
        tokenizer.initialize(torch.cat([to_model(whole.batch(step)[0]) for step in steps]))
        # Equal codes never part; they arise where the images give no more different tokens.
        most, codebook = whole.num_crops * tokens, tokenizer.quantizer.codebook
        if most < num_codes and (apart := len(codebook.unique(dim=0))) < num_codes:
            raise ValueError(
                f"quantizer.num_codes = {num_codes}: the training images have {most} different "
                f"crops' tokens, and only {apart} codes start apart; it must be at most that many, "
                "or quantizer.start 'gaussian' or 'uniform'."
            )

    def _prepare(self) -> None:
        train, cuda = self.config.train, self.device.type == "cuda"
        if cuda:
            self.tokenizer.to(memory_format=torch.channels_last)
        if train.compile:
            self.tokenizer.encoder.compile()
            self.tokenizer.decoder.compile()
        rates = {"weight_decay": train.weight_decay, "codebook_lr": train.codebook_lr}
        groups = parameter_groups(self.tokenizer, **rates)
        optimizer = AdamW(groups, lr=train.lr, betas=(0.9, 0.99), fused=cuda)
        self.model, self.optimizer = self.accelerator.prepare(self.tokenizer, optimizer)
        self.ema = {k: v.detach().clone() for k, v in self.tokenizer.named_parameters()}
        if self.judge is not None:
            lr = self.config.loss.discriminator_lr
            optimizer = AdamW(self.judge.parameters(), lr=lr, betas=(0.5, 0.9), fused=cuda)
            self.judge_model, self.judge_optimizer = self.accelerator.prepare(self.judge, optimizer)

    # One step ------------------------------------------------------------------------------------

    def stop_signal(self, received: list[int]) -> int:
        """Give the signal on which to stop, or 0; ranks ask each other, to stop together."""
        mine = received[0] if received else 0
        if self.accelerator.num_processes == 1:
            return mine
        if self.step % STOP_EVERY:
            return 0
        return int(self.accelerator.gather(torch.tensor([mine], device=self.device)).max())

    def advance(self, bar: tqdm) -> None:
        """Take one step; log, snapshot, evaluate and save where it is due."""
        config, step = self.config, self.step
        # Each step has its own random stream: to resume needs no stored generator.
        torch.manual_seed((config.seed * 1_000_003 + step) * 64 + self.accelerator.process_index)
        images = to_model(self.batches.batch(step)[0])  # (B, 3, S, S)
        self.tau = config.temperature.at(step, config.train.num_steps) * self._tau_unit()
        for group in self.optimizer.param_groups:
            group["lr"] = config.train.lr_at(step) * group["scale"]

        try:
            with self.accelerator.autocast():
                output = self.model(images, self.tau)
        except NonFinite as error:
            raise self._non_finite(str(error)) from None
        self.tokenizer.observe(output.latents, output.quantized.indices)  # before codes move
        total, terms = self.loss(images, output.images, output.quantized.terms)
        begins = config.loss.adversarial_start * config.train.num_steps
        judging = self.judge is not None and step >= begins
        if judging:
            with frozen(self.judge), self.accelerator.autocast():
                logits = self.judge(output.images)
            last = self.tokenizer.decoder.last.weight
            total, more = self.loss.adversarial(total, logits.float(), last)
            terms |= more
        self._require_finite(total, terms)

        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(total)
        clip = config.train.clip or math.inf
        terms["grad_norm"] = self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.tokenizer.quantizer.after_step()
        if judging:
            terms["discriminator"] = self._step_judge(images, output.images.detach())

        self.step += 1
        self._observe(output)
        due = self.step == config.train.num_steps
        if due or self.step % config.train.log_every == 0:
            self._log(bar, images, output.images, {"loss": total, **terms})
        if self.step in self.snapshot_steps:
            self._snapshot()
        every = config.train.eval_every
        if due or (every and self.step % every == 0):
            self.evaluate()
        if due or self.step % config.train.checkpoint_every == 0:
            self.save()

    def _tau_unit(self) -> float:
        name = self.config.temperature.unit
        if name == "absolute":
            return 1.0
        unit = self.tau_c if name == "tau_c" else self.tokenizer.width
        if not unit > 0:
            right = f"it must be 'absolute' at step {self.step + 1}: the unit is {unit:.4g}"
            why = "for the latents have no spread to measure tau by"
            raise ValueError(f"temperature.unit = {name!r}: {right}, {why}.")
        return unit

    def _step_judge(self, images: Tensor, fakes: Tensor) -> Tensor:
        with self.accelerator.autocast():
            real, fake = self.judge_model(torch.cat([images, fakes])).chunk(2)
        loss = discriminator_loss(real.float(), fake.float())
        self.judge_optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.judge_optimizer.step()
        return loss

    @torch.no_grad()
    def _observe(self, output: Reconstruction) -> None:
        """Keep the statistics that a step leaves: averages of weights, uses of codes."""
        self.tokenizer.trained_tau.fill_(self.tau)
        if self.step % TAU_C_EVERY == 0:
            self.tau_c = self.tokenizer.tau_c
        if self.config.train.ema:
            pairs = [(self.ema[k], v) for k, v in self.tokenizer.named_parameters()]
            averages, values = map(list, zip(*pairs, strict=True))
            torch._foreach_lerp_(averages, values, 1 - self.config.train.ema)
        indices = output.quantized.indices.flatten()
        self.counts += torch.bincount(indices, minlength=self.counts.shape[1])
        self.last_used[indices] = self.step

    def _require_finite(self, total: Tensor, terms: dict[str, Tensor]) -> None:
        """Look at every step on a CPU; on a GPU, where looking waits, before a write."""
        train, step = self.config.train, self.step + 1
        writes = step % train.log_every == 0 or step % train.checkpoint_every == 0
        writes |= step == train.num_steps or step in self.snapshot_steps
        if (self.device.type == "cuda" and not writes) or torch.isfinite(total):
            return
        values = ", ".join(f"{k} = {v.item():.4g}" for k, v in terms.items())
        raise self._non_finite(f"the loss is {total.item()} ({values})")

    def _non_finite(self, what: str) -> NonFiniteLoss:
        return NonFiniteLoss(
            f"{self.run.name}: {what} at step {self.step + 1}, tau = {self.tau:.4g}. The last good "
            f"checkpoint is of step {self.saved}, in {self.run.path / 'checkpoints'}; a smaller "
            "train.lr or a higher temperature.end may help."
        )

    # What is written -----------------------------------------------------------------------------

    @torch.no_grad()
    def _log(self, bar: tqdm, images: Tensor, outputs: Tensor, terms: dict[str, Tensor]) -> None:
        error = (outputs.float().clamp(-1, 1) - images).square().mean((1, 2, 3))
        terms["psnr"] = (10 * torch.log10(4 / error.clamp(min=1e-10))).mean()
        values = torch.stack([value.float().detach() for value in terms.values()])
        means = self.accelerator.reduce(values, "mean").tolist()
        counts = self.accelerator.reduce(self.counts[0].clone(), "sum").double()
        self.counts[0].zero_()
        numbers = dict(zip(terms, means, strict=True)) | {
            "active": int((counts > 0).sum()),
            "perplexity": float(torch.special.entr(counts / counts.sum()).sum().exp()),
            "tau": self.tau,
            "tau_c": self.tau_c,
            "lr": self.config.train.lr_at(self.step - 1),
        }
        now = time.perf_counter()
        speed = (self.step - self.clock_step) * self.config.train.batch_size / (now - self.clock)
        bar.update(self.step - bar.n)
        bar.set_postfix_str(
            f"loss {numbers['loss']:.3f}, {numbers['psnr']:.1f} dB, {numbers['active']} codes, "
            f"tau {self.tau:.2g}, {speed:.0f} images/s"
        )
        if self.accelerator.is_main_process:
            self.run.log(self.step, "train", **numbers)
            self.run.log(self.step, "timing", images_per_second=speed)
        self.clock, self.clock_step = time.perf_counter(), self.step

    @contextmanager
    def _as_evaluated(self) -> Iterator[Tokenizer]:
        """Give the tokenizer in evaluation mode, with averaged weights where they are kept."""
        averages = self.ema if self.config.train.ema else {}
        parameters = dict(self.tokenizer.named_parameters())
        kept = {name: parameters[name].detach().clone() for name in averages}
        self.tokenizer.load_state_dict(averages, strict=False)
        self.tokenizer.eval()
        try:
            yield self.tokenizer
        finally:
            self.tokenizer.train()
            self.tokenizer.load_state_dict(kept, strict=False)

    def evaluate(self) -> None:
        """Measure the tokenizer on a few held-out images, and log what was found."""
        if not self.accelerator.is_main_process:
            return
        started = time.perf_counter()
        few, batch = self.held_out[:LIGHT_EVALUATION], self.config.evaluation.batch_size
        with self._as_evaluated() as tokenizer:
            found = evaluate(tokenizer, few, batch_size=batch, device=self.device, progress=False)
        names = ("psnr", "ssim", "l1", "active", "perplexity")
        self.run.log(self.step, "val", **{name: found.numbers[name] for name in names})
        self.clock += time.perf_counter() - started  # not part of the training's speed

    @torch.no_grad()
    def _snapshot(self) -> None:
        counts = self.accelerator.reduce(self.counts[1].clone(), "sum")
        last_used = self.accelerator.gather(self.last_used[None]).amax(0)
        self.counts[1].zero_()
        if not self.accelerator.is_main_process:
            return
        most = self.config.train.probe
        probe = torch.as_tensor(self.held_out[: math.ceil(most / self.config.latent_side**2)])
        with self._as_evaluated() as tokenizer:
            latents = tokenizer.latents(to_model(probe.to(self.device)))
            quantizer = tokenizer.quantizer
            points = quantizer.points(latents).flatten(0, -2)[:most]
            indices = quantizer.encode(latents).flatten()[:most]
            # Copies: the codes are the weights themselves, which change back right after this.
            found = (quantizer.sites.float(), points, indices, counts, last_used)
            arrays = [value.cpu().numpy().copy() for value in found]
        self.run.save_snapshot(Snapshot(self.step, self.tau, self.tau_c, *arrays))

    def save(self) -> None:
        """Write a checkpoint of everything from which training goes on."""
        self.saved = self.step
        training = {
            "counts": self.accelerator.reduce(self.counts.clone(), "sum"),
            "last_used": self.accelerator.gather(self.last_used[None]).amax(0),
            **_flatten("optimizer", self.optimizer),
        }
        tensors = {"tokenizer": self.tokenizer.state_dict(), "training": training}
        if self.config.train.ema:
            tensors["ema"] = self.tokenizer.state_dict() | self.ema
        if self.judge is not None:
            training |= _flatten("judge_optimizer", self.judge_optimizer)
            tensors["judge"] = self.judge.state_dict()
        scaler = self.accelerator.scaler
        state = {"scaler": scaler.state_dict()} if scaler is not None else {}
        if self.accelerator.is_main_process:
            self.run.save_checkpoint(self.step, tensors, tau=self.tau, tau_c=self.tau_c, **state)
        self.accelerator.wait_for_everyone()  # nobody reads the run before it is written

    def _restore(self, checkpoint: Checkpoint) -> None:
        training, state = checkpoint.tensors["training"], checkpoint.state
        self.step = self.saved = checkpoint.step
        self.tau, self.tau_c = state["tau"], state["tau_c"]
        if self.accelerator.is_main_process:  # the sum over ranks, which are summed again
            self.counts.copy_(training["counts"])
        self.last_used.copy_(training["last_used"])
        _unflatten("optimizer", self.optimizer, training)
        if self.config.train.ema:
            self.ema = {k: checkpoint.tensors["ema"][k].to(self.device) for k in self.ema}
        if self.judge is not None:
            _unflatten("judge_optimizer", self.judge_optimizer, training)
            self.judge.load_state_dict(checkpoint.tensors["judge"])
        if "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def snapshot_steps(num_steps: int, num_snapshots: int) -> set[int]:
    """Give log-spaced steps from 0 to the last; fewer than asked for where they coincide."""
    if num_snapshots == 0 or num_steps == 0:
        return {0} if num_snapshots else set()
    spaced = np.geomspace(1, num_steps, max(1, num_snapshots - 1))
    return {0, num_steps, *(round(step) for step in spaced)} if num_snapshots > 1 else {num_steps}


def parameter_groups(
    tokenizer: Tokenizer, *, weight_decay: float, codebook_lr: float = 1.0
) -> list[dict]:
    """Group matrices, which decay, norms and biases, and the quantizer, at `codebook_lr` x lr."""
    named = [(k, v) for k, v in tokenizer.named_parameters() if v.requires_grad]
    own = [v for k, v in named if k.startswith("quantizer.")]
    backbone = [v for k, v in named if not k.startswith("quantizer.")]
    matrices, others = ([v for v in backbone if (v.ndim > 1) == big] for big in (True, False))
    kinds = (matrices, weight_decay, 1.0), (others, 0.0, 1.0), (own, 0.0, codebook_lr)
    return [{"params": p, "weight_decay": decay, "scale": scale} for p, decay, scale in kinds]


def _flatten(name: str, optimizer: Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    named = {f"{name}.{i}.{key}": v for i, own in state.items() for key, v in own.items()}
    return {key: torch.as_tensor(v) for key, v in named.items()}


def _unflatten(name: str, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{name}."):
            _, index, kind = key.split(".")
            state.setdefault(int(index), {})[kind] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    inner = getattr(optimizer, "optimizer", optimizer)
    for parameter, own in inner.state.items():
        for kind, value in own.items():
            if value.shape == parameter.shape:  # in its strides, which the fused step asks for
                own[kind] = torch.empty_like(parameter).copy_(value)
