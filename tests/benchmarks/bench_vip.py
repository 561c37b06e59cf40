"""A training step of ViP from cached features, against the same step done plainly.

    python -m tests.benchmarks.bench_vip

Both train the same prompts, 2 classes x 4 symptoms, on batches of 32 images, in one process and in turns:
plain   the image tower's forward pass (frozen, no gradient), every prompt encoded on its own in a loop, with
        all 77 tokens; backward to the prompts; SGD.
ours    the batch's cached image features, all prompts at once, cut to their tokens; backward; SGD.
Then a run of the size of the Pneumonia data set (4,710 images, 50 epochs, batch 32) from the measured parts:
plain   50 x 148 plain steps (reading images left out, in its favour).
ours    4 cached views of each image, read, augmented and encoded once each, then 50 x 148 of our steps.
The images that are read are chest X-rays of $MEDVLP_DATA/chest_xray where that is set, else noise as JPEG.
On a machine that does other work, set OMP_NUM_THREADS=1: threads that wait slow small steps most.
"""

import statistics
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from medvlp.backbone.clip import Clip, load_clip
from medvlp.backbone.features import RandomView
from medvlp.backbone.prompts.hooks import encode_deep_text
from medvlp.data.cards import load_card
from medvlp.methods.vip import ViP, merge
from tests.benchmarks.bench_features import find_pictures
from tests.benchmarks.timing import learn, n_learned, options, sgd_of, timed

N_IMAGES, EPOCHS, VIEWS = 4710, 50, 4


def plain_logits(vip: ViP, images: torch.Tensor) -> torch.Tensor:
    """ViP as its formula reads, nothing saved: (B, 3, H, W) -> (B, n_cls)."""
    clip = vip.clip
    with torch.no_grad():
        f = clip.encode_images(images)  # (B, D)
    rest = (0, clip.context_length - vip.tokens.shape[1])
    rows = zip(F.pad(vip.tokens, rest).split(1), F.pad(vip.slots, rest).split(1), strict=True)  # (1, 77) each
    T = torch.cat([encode_deep_text(clip, *row, [vip.ctx[None]])[0] for row in rows])  # (N, D)
    t, _ = merge(T.unflatten(0, vip.mask.shape), vip.g, vip.Wq, vip.Wk, vip.mask)  # (n_cls, D)
    return clip.logit_scale * f @ F.normalize(t, dim=-1).T


def read_views(clip: Clip, paths: list[Path]) -> torch.Tensor:
    """Decode and augment images as the cached views are: (n, 3, S, S)."""
    view = RandomView(clip)
    return torch.stack([view(Image.open(path).convert("RGB"), str(path), 0) for path in paths])


def main() -> None:
    defaults = {"clip": "ViT-B-16/random", "batch_size": 32, "rounds": 5, "device": "auto"}
    args = options(__doc__, ours_a_round=5, **defaults).parse_args()  # our steps for each plain one

    clip = load_clip(args.clip, device=args.device)
    card = load_card("pneumonia")
    vip = ViP(clip, card, symptoms={c: phrases[:4] for c, phrases in card.symptoms().items()})
    sgd = sgd_of(vip, lr=0.002)
    labels = (torch.arange(args.batch_size) % 2).to(clip.device)

    with tempfile.TemporaryDirectory() as folder:
        paths, kind = find_pictures(args.batch_size, Path(folder))
        images = read_views(clip, paths).to(clip.device)  # (B, 3, S, S)
        with torch.no_grad():
            features = clip.encode_images(images)  # (B, D)
            same = torch.allclose(vip.logits_from_features(features), plain_logits(vip, images), atol=1e-3)
        if not same:
            raise SystemExit("the plain step and ours do not compute the same logits")
        calls = {
            "plain": lambda: learn(sgd, plain_logits(vip, images), labels),
            "ours": lambda: learn(sgd, vip.logits_from_features(features), labels),
            "encode": torch.no_grad()(lambda: clip.encode_images(images)),
            "read": lambda: read_views(clip, paths),
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for i in range(args.rounds + 1):
            for name, call in calls.items():
                seconds[name] += [timed(call) for _ in range(args.ours_a_round if name == "ours" else 1)]
            if i == 0:  # warm-up, not counted
                seconds = {name: [] for name in calls}
                continue
            ours = statistics.median(seconds["ours"][-args.ours_a_round :])
            print(f"round {i}: plain {seconds['plain'][-1]:.3f} s, ours {ours:.4f} s", flush=True)

    plain, ours, encode, read = (statistics.median(values) for values in seconds.values())
    threads, (n, length) = torch.get_num_threads(), vip.tokens.shape
    print(
        f"{args.clip} on {clip.device}, {threads} threads; {n_learned(vip):,} learned numbers; images: {kind}"
    )
    print(f"prompts: {n} of {length} tokens, in the plain step {clip.context_length}")
    print(f"step, medians: plain {plain:.3f} s, ours {ours:.4f} s: ratio {plain / ours:.1f} (target: >= 40)")

    steps = EPOCHS * -(-N_IMAGES // args.batch_size)
    batches = VIEWS * N_IMAGES / args.batch_size
    plain_run, views, training = steps * plain, batches * (encode + read), steps * ours
    print(f"parts, medians a batch: encode {encode:.3f} s, read and augment {read:.3f} s in one process")
    print(
        f"{EPOCHS} epochs of {N_IMAGES:,} images: plain {plain_run / 3600:.2f} h; ours {VIEWS} views "
        f"{views / 3600:.2f} h + steps {training / 3600:.2f} h: ratio {plain_run / (views + training):.1f} "
        "(target: >= 10)"
    )


if __name__ == "__main__":
    main()
