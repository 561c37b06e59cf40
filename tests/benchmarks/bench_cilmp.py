"""A training step of CILMP against the same function done plainly.

    python -m tests.benchmarks.bench_cilmp            # about eight minutes

Both train the same parameters of one `CILMP` on the same images with the same dropout masks: ViT-B/16 with
random weights, 7 classes with representations of 37 to 43 rows, 4096 wide, forward, backward and SGD.
plain       as the equations read: edited rows image by image, class by class and row by row, as wide as the
            LLM; the text of every image and class on its own, with all 77 tokens; all image tokens.
vectorised  the same work, but all edited rows of a block at once, (batch, class, row, width), and all texts.
ours        `CILMP` as it is.
Each round runs matrix products to find the machine's rate, then plain, vectorised, ours, in this order, in
one process. Peak memory is measured for each side in a process of its own. On a GPU it is what torch
allocated: model and step. On the CPU it is the resident set; the same is then that less what the imported
libraries hold before a model is loaded (0.8 GiB for a torch built with CUDA, on either side), and the ratio
of the whole processes is printed beside it. What loading has freed is given back first. All processes have
the same allocator settings, `ALLOCATOR` below: with glibc's own every large buffer is taken from the kernel
anew, and its page faults slow all sides.
The floor is the multiply-adds that the logits and their gradients need, over the measured rate of matrix
products: what a step would take if everything else were free.
On a machine that does other work, give --threads 1 --clock cpu, which counts the seconds that the process
computed, and not those that it waited for others.
"""

import argparse
import ctypes
import itertools
import logging
import os
import platform
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.backbone.clip import Clip, load_clip
from medvlp.data.cards import DataCard
from medvlp.methods.cilmp import CILMP
from tests.benchmarks.timing import Clock, n_learned, options, sgd_of

ALLOCATOR = {  # glibc: keep freed memory, as other allocators do
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "MALLOC_TOP_PAD_": str(2**26),
}
NAMES = ["melanoma", "melanocytic nevi", "basal cell carcinoma", "actinic keratoses", "benign keratosis"]
NAMES += ["dermatofibroma", "vascular lesions"]
PARTS = ("image", "intervention", "text", "backward", "step")  # of a training step
LENGTHS = range(37, 44)
WIDTHS = (576, 2048, 4096)  # of the representations, for the sweep
Parts = tuple[Callable, Callable, Callable]  # image, intervention, text


def build(clip: Clip, d: int) -> CILMP:
    facts = {"name": "skin", "title": "Skin", "modality": "a dermoscopy image", "source": {"kind": "folder"}}
    random = torch.Generator().manual_seed(0)
    states = {name: torch.randn(n, d, generator=random) for name, n in zip(NAMES, LENGTHS, strict=True)}
    return CILMP(clip, DataCard(classes=NAMES, **facts), states).train()


# --- the three sides, each in three parts: f of images, rows of f, text features of rows ---


def plain_image(cilmp: CILMP, images: Tensor) -> Tensor:
    """f (B, D)."""
    visual, prompts = cilmp.clip.model.visual, cilmp.image_prompts.to(cilmp.clip.dtype)
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.to(x).expand(len(x), 1, -1), x], dim=1)
    x = x + visual.positional_embedding
    n = x.shape[1]
    x = visual.ln_pre(torch.cat([x, prompts[0].expand(len(x), -1, -1)], dim=1))
    for i, block in enumerate(visual.transformer.resblocks):
        if 0 < i < len(prompts):
            x = torch.cat([x[:, :n], prompts[i].expand(len(x), -1, -1)], dim=1)
        x = block(x)
    return F.normalize((visual.ln_post(x)[:, 0] @ visual.proj).float(), dim=-1)


def row_by_row(cilmp: CILMP, f: Tensor) -> list[list[Tensor]]:
    """Of each block and class the rows (B, L_c, w)."""
    of_block = []
    for site in cilmp.sites:
        masks = [site.dropout_prefix(cilmp.h_first, len(f)), site.dropout_suffix(cilmp.h_last, len(f))]
        of_class = []
        for c, middle in enumerate(cilmp.h_middle.split(cilmp.walk.middle_counts)):
            of_image = []
            for b in range(len(f)):
                edited = []
                edges = zip((site.prefix, site.suffix), (cilmp.h_first, cilmp.h_last), masks, strict=True)
                for m, h, mask in edges:
                    for j, row in enumerate(h[c]):
                        g = m.G2 @ (m.G1 @ f[b] + m.c1) + m.c2
                        s = m.W1 @ row + m.W2 @ (row * g) + m.b - m.R.T @ row
                        edited.append((row + m.R @ s) * mask[c, j])
                P = h.shape[1]
                rows = torch.cat([torch.stack(edited[:P]), middle, torch.stack(edited[P:])])  # (L_c, d)
                of_image.append(rows @ site.A.T @ site.B.T)
            of_class.append(torch.stack(of_image))
        of_block.append(of_class)
    return of_block


def all_rows_at_once(cilmp: CILMP, f: Tensor) -> list[list[Tensor]]:
    """Of each block and class the rows (B, L_c, w)."""
    of_block = []
    for site in cilmp.sites:
        first = site.prefix(cilmp.h_first, f) * site.dropout_prefix(cilmp.h_first, len(f))  # (B, n_cls, P, d)
        last = site.suffix(cilmp.h_last, f) * site.dropout_suffix(cilmp.h_last, len(f))
        first, middle, last = (h @ site.A.T @ site.B.T for h in (first, cilmp.h_middle, last))
        middles = middle.split(cilmp.walk.middle_counts)
        classes = zip(first.unbind(1), middles, last.unbind(1), strict=True)
        of_block.append([torch.cat([a, m.expand(len(f), -1, -1), b], dim=1) for a, m, b in classes])
    return of_block


def all_texts_at_once(cilmp: CILMP, rows: list[list[Tensor]], classes: Sequence[int] | None = None) -> Tensor:
    """t (B, n_cls, D), or of these classes alone, with all tokens of the tower."""
    text, n_ctx, B = cilmp.clip.model.text, cilmp.ctx.shape[1], len(rows[0][0])
    tokens = cilmp.tokens if classes is None else cilmp.tokens[classes]
    tokens = F.pad(tokens, (0, cilmp.clip.context_length - tokens.shape[1]))  # (n_cls, 77)
    x = text.token_embedding(tokens).expand(B, -1, -1, -1)  # (B, n_cls, 77, w)

    def replace(x: Tensor, i: int) -> Tensor:
        texts = []
        for c, of_class in enumerate(rows[i]):
            ctx = cilmp.ctx[i].expand(B, -1, -1).to(x.dtype)
            rest = x[:, c, 1 + n_ctx + of_class.shape[1] :]
            texts.append(torch.cat([x[:, c, :1], ctx, of_class.to(x.dtype), rest], dim=1))
        return torch.stack(texts, dim=1)

    x = replace(x, 0) + text.positional_embedding
    for i, block in enumerate(text.transformer.resblocks):
        x = replace(x, i) if 0 < i < len(rows) else x
        x = block(x.flatten(0, 1), attn_mask=text.attn_mask).unflatten(0, (B, -1))
    ends = tokens.argmax(dim=1)  # (n_cls,)
    x = text.ln_final(x[:, torch.arange(len(ends), device=ends.device), ends]) @ text.text_projection
    return F.normalize(x.float(), dim=-1)


def text_by_text(cilmp: CILMP, rows: list[list[Tensor]]) -> Tensor:
    """t (B, n_cls, D), with all tokens of the tower."""
    t = []
    for b, c in itertools.product(range(len(rows[0][0])), range(len(NAMES))):
        one = [[of_class[c][b : b + 1]] for of_class in rows]  # (1, L_c, w) for each block
        t.append(all_texts_at_once(cilmp, one, [c])[0, 0])
    return torch.stack(t).unflatten(0, (-1, len(NAMES)))


def our_text(cilmp: CILMP, vectors: list) -> Tensor:
    return F.normalize(cilmp.walk(cilmp.clip.model.text, vectors).float(), dim=-1)


def our_rows(cilmp: CILMP, f: Tensor) -> list:
    return [cilmp.slot_vectors(f, i) for i in range(len(cilmp.sites))]


SIDES: dict[str, Parts] = {
    "plain": (plain_image, row_by_row, text_by_text),
    "vectorised": (plain_image, all_rows_at_once, all_texts_at_once),
    "ours": (CILMP.image_features, our_rows, our_text),
}


class Trainer:
    """Steps of either side on the same method and images."""

    def __init__(self, args: argparse.Namespace) -> None:
        clip = load_clip(args.clip, device=args.device, precision=args.precision)
        self.cilmp = build(clip, args.d)
        random = torch.Generator().manual_seed(0)
        size = (args.batch_size, 3, clip.image_size, clip.image_size)
        self.images = torch.randn(size, generator=random).to(clip.device, clip.dtype)
        self.labels = (torch.arange(args.batch_size) % len(NAMES)).to(clip.device)
        self.sgd = sgd_of(self.cilmp, lr=0.0025)

    def logits(self, side: str, seconds: dict[str, float] | None = None) -> Tensor:
        seconds, clock = {} if seconds is None else seconds, Clock()
        image, rows, text = SIDES[side]
        f = image(self.cilmp, self.images)
        seconds["image"] = clock.look()
        between = rows(self.cilmp, f)
        seconds["intervention"] = clock.look()
        t = text(self.cilmp, between)
        seconds["text"] = clock.look()
        return self.cilmp.logit_scale * torch.einsum("bd,bcd->bc", f, t)

    def step(self, side: str) -> dict[str, float]:
        """Seconds of each part of a step, and of all."""
        seconds, whole_step = {}, Clock()
        loss = F.cross_entropy(self.logits(side, seconds), self.labels)
        clock = Clock()
        self.sgd.zero_grad()
        loss.backward()
        seconds["backward"] = clock.look()
        self.sgd.step()
        return seconds | {"step": whole_step.look()}


def needed(cilmp: CILMP, B: int) -> float:
    """Multiply-adds of a step, forward and backward to activations, with what the weights' gradients need.

    An attention costs as much as its two products forward and four backward. Elementwise work is not counted.
    """
    visual, text, walk = cilmp.clip.model.visual, cilmp.clip.model.text, cilmp.walk
    w, L, n = visual.transformer.width, visual.transformer.layers, cilmp.image_prompts.shape[1]
    N = visual.positional_embedding.shape[0]
    patch = visual.conv1.weight[0].numel() * w * (N - 1) * B  # forward only
    dense = 2 * B * N * 12 * w * w * (L - 1) - B * N * 3 * w * w  # block 0's patches need no gradient
    prompts = 2 * (L - 1) * n * 2 * w * w
    attention = 3 * 2 * B * N * (N + n) * w * (L - 1)
    last = 2 * (B * (N + n) * 2 * w * w + B * 10 * w * w) + 3 * 2 * B * (N + n) * w
    total = patch + dense + prompts + attention + last

    w, L, n_cls = text.width, text.transformer.layers, len(NAMES)
    live, edges = sum(walk.live_counts), cilmp.h_first.shape[1] + cilmp.h_last.shape[1]
    shared = 1 + cilmp.ctx.shape[1] + len(cilmp.h_middle)
    keys = sum(
        t * (1 + cilmp.ctx.shape[1] + m + edges) + t * (t + 1) // 2
        for t, m in zip(walk.live_counts, walk.middle_counts, strict=True)
    )
    dense = 2 * B * live * 12 * w * w * (L - 1) - 2 * (B - 1) * live * 3 * w * w - live * 3 * w * w
    tokens = 2 * (B * n_cls * edges + shared) * 2 * w * w * L
    attention = 3 * 2 * B * keys * w * (L - 1)
    last = 2 * (B * live * 2 * w * w + B * n_cls * 10 * w * w) + 3 * 2 * B * keys / live * n_cls * w
    total += dense + tokens + attention + last

    d, r = cilmp.sites[0].A.shape[1], cilmp.sites[0].A.shape[0]
    rows = n_cls * edges
    per_site = rows * d * r * r * 2 + 3 * rows * d * r + len(cilmp.h_middle) * d * r  # both r x r, base, A
    per_site += B * rows * r * (2 * r + w) + len(cilmp.h_middle) * r * w
    return float(total + 2 * per_site * len(cilmp.sites))


def rate(cilmp: CILMP, B: int) -> float:
    """Multiply-adds a second of a matrix product as the image tower's largest."""
    visual, clip = cilmp.clip.model.visual, cilmp.clip
    rows, w = B * visual.positional_embedding.shape[0], visual.transformer.width
    a = torch.randn(rows, w, device=clip.device, dtype=clip.dtype)
    b = torch.randn(w, 4 * w, device=clip.device, dtype=clip.dtype)
    times = 4 if clip.device.type == "cpu" else 200
    a @ b
    clock = Clock()
    for _ in range(times):
        a @ b
    return times * a.numel() * b.shape[1] / clock.look()


def resident() -> int:
    """Bytes that this process holds in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def time_steps(args: argparse.Namespace) -> dict:
    """Medians over the rounds, in seconds, and the machine's rate."""
    trainer = Trainer(args)
    sides = [side for side in SIDES if side != "plain" or not args.skip_plain]
    with torch.no_grad():
        logits = {}
        for side in sides:
            torch.manual_seed(0)  # the same masks
            logits[side] = trainer.logits(side)
    error = max((logits[side] - logits["ours"]).abs().max().item() for side in sides)
    if error > (1e-3 if args.precision == "fp32" else 1.0):
        raise SystemExit(f"the sides do not compute the same logits: {error} apart")
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    rates = []
    for i in range(args.rounds + 1):
        rates.append(rate(trainer.cilmp, args.batch_size))
        for side in sides:
            rounds[side].append(trainer.step(side))
        rates.append(rate(trainer.cilmp, args.batch_size))
        shown = ", ".join(f"{side} {rounds[side][-1]['step']:.3f} s" for side in sides)
        warm_up = " (warm-up, not counted)" if i == 0 else ""
        print(f"round {i}: {shown}, {rates[-1] / 1e9:.1f} G multiply-adds a second{warm_up}", file=sys.stderr)
    medians = {
        side: {part: statistics.median(s[part] for s in steps[1:]) for part in steps[0]}
        for side, steps in rounds.items()
    }
    return {
        "medians": medians,
        "rate": statistics.median(rates[2:]),
        "needed": needed(trainer.cilmp, args.batch_size),
        "error": error,
        "learned": n_learned(trainer.cilmp),
    }


def peak_memory(args: argparse.Namespace, side: str) -> dict:
    """Bytes that the libraries hold, before the first step, and the most during two."""
    cuda = args.device.startswith("cuda")
    libraries = 0 if cuda else resident()
    trainer = Trainer(args)
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    before = torch.cuda.memory_allocated() if cuda else resident()
    for _ in range(2):
        trainer.step(side)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated() if cuda else most
    return {"libraries": libraries, "before": before, "peak": peak}


def saved_bytes(args: argparse.Namespace) -> dict:
    """MiB that the interventions keep for the backward pass, beside parameters and representations."""
    clip, sizes = load_clip(args.clip, device=args.device, precision=args.precision), defaultdict(list)
    for d, side, B in itertools.product(WIDTHS, ("ours", "vectorised"), (8, 32)):
        cilmp, kept = build(clip, d), {}

        def keep(tensor: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address comes twice
            return tensor

        f = torch.randn(B, clip.embed_dim, device=clip.device, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            _rows = SIDES[side][1](cilmp, f)
        for tensor in (*cilmp.parameters(), *cilmp.buffers()):
            kept.pop(tensor.untyped_storage().data_ptr(), None)
        size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        sizes[f"{side}, batch {B}"].append(size / 2**20)
    return dict(sizes)


def prepare(args: argparse.Namespace) -> None:
    """What a new process sets before its task."""
    logging.disable(logging.WARNING)  # open_clip says that the weights are random
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.clock == "cpu":
        Clock.now = time.process_time


def run(task: Callable[..., dict], args: argparse.Namespace, *more: str) -> dict:
    """What a task gives, in a process of its own."""
    os.environ.update(ALLOCATOR)  # which the new process reads when it starts
    with ProcessPoolExecutor(1, get_context("spawn"), prepare, (args,)) as pool:
        return pool.submit(task, args, *more).result()


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width = 4096  # of the representations
    parser = options(__doc__, clip="ViT-B-16/random", batch_size=8, d=width, rounds=3, device=device)
    parser.add_argument("--threads", type=int, default=None, help="of torch on the CPU")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--skip-plain", action="store_true", help="time the vectorised side alone with ours")
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or "CPU"
    threads, load = args.threads or torch.get_num_threads(), os.getloadavg()[0]
    print(f"{args.clip}, {args.precision}, batch {args.batch_size}, {len(NAMES)} classes, d {args.d}")
    print(f"{name}, {threads} threads, torch {torch.__version__}, load average before {load:.1f}")
    print("allocator: " + " ".join(f"{key}={value}" for key, value in ALLOCATOR.items()))
    times = run(time_steps, args)
    medians, floor = times["medians"], times["needed"] / times["rate"]
    print(f"{times['learned']:,} learned numbers; logits of all sides within {times['error']:.1e}")
    print(f"seconds ({args.clock} clock), medians of {args.rounds}:  {'  '.join(PARTS)}")
    for side, parts in medians.items():
        print(f"  {side:<12} {'  '.join(f'{parts[part]:.3f}' for part in PARTS)}")
    ours = medians["ours"]["step"]
    print(
        f"floor: {times['needed'] / 1e9:.0f} G multiply-adds at {times['rate'] / 1e9:.1f} G a second = "
        f"{floor:.3f} s; ours / floor {ours / floor:.2f} (target: <= 1.6)"
    )
    for side in medians:
        if side != "ours":
            target = " (target: >= 3)" if side == "plain" else ""
            print(f"{side} / ours: {medians[side]['step'] / ours:.2f}{target}")

    gib = {}  # model and step, step alone, in all
    for side in medians:
        m = run(peak_memory, args, side)
        gib[side] = [(m["peak"] - m.get(less, 0)) / 2**30 for less in ("libraries", "before", "")]
        model, step, whole = gib[side]
        print(f"peak memory, {side}: model and step {model:.2f} GiB, step {step:.2f}, in all {whole:.2f}")
    for side in medians:
        if side != "ours":
            model, step, whole = (a / b for a, b in zip(gib["ours"], gib[side], strict=True))
            target = " (target: <= 0.5)" if side == "plain" else ""
            print(f"ours / {side}: {model:.2f}{target}, step {step:.2f}, in all {whole:.2f}")

    print(f"kept by the interventions for the backward pass, MiB, for d of {WIDTHS}:")
    for case, row in run(saved_bytes, args).items():
        print(f"  {case:<20} " + "  ".join(f"{value:>7.1f}" for value in row))


if __name__ == "__main__":
    main()
