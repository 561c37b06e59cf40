"""What runs in the process of a local LLM's server: its files are laid out, then `transformers serve`.

The process ends with the one that started it, however that ends: it reads a pipe from it, and leaves when the
pipe closes.
"""

import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

HOST = "127.0.0.1"
STORED = "bfloat16"  # the unpacked weights, on disk
STALE = 3600  # seconds after which a half-written copy is nobody's
NO_TEMPLATE = "has no chat template, so it takes no messages; choose an instruct or chat LLM."


def serve(name: str, port: str, place: str, gguf_file: str) -> None:
    """Serve one LLM on the loopback address until the process that started this one is gone.

    Args:
        name: what requests call it.
        port: where to listen.
        place: a local folder, or the name of a repository on the Hugging Face hub.
        gguf_file: a file in that folder whose weights are unpacked first; or nothing.

    A local LLM is laid out in HF_HUB_CACHE, as if it had come from the hub under that name.
    """
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    hub = Path(os.environ["HF_HUB_CACHE"]) if os.path.isabs(place) else None
    if hub and not hub.exists():
        _lay_out(hub, name, place, gguf_file)
    import torch
    from transformers.cli.serve import Serve

    from medvlp.backbone.clip import native_bfloat16

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "bfloat16" if device == "cuda" or native_bfloat16() else "float32"
    Serve(force_model=name, host=HOST, port=int(port), device=device, dtype=dtype)


def _leave_with_parent() -> None:
    """Wait until the pipe from the parent closes, as it does when the parent is killed; then end at once."""
    sys.stdin.buffer.read()
    os._exit(1)


def _lay_out(hub: Path, name: str, place: str, gguf_file: str) -> None:
    """Write `hub` as a hub cache that holds one model: a link to a folder, or what a GGUF file holds."""
    hub.parent.mkdir(parents=True, exist_ok=True)
    for old in hub.parent.glob(".*.part"):  # of a process that was killed
        if time.time() - old.stat().st_mtime > STALE:
            shutil.rmtree(old, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f".{hub.name}.", suffix=".part", dir=hub.parent))
    try:
        repo = part / f"models--{name}"
        (repo / "refs").mkdir(parents=True)
        (repo / "snapshots").mkdir()
        (repo / "refs" / "main").write_text("local", "utf-8")
        if gguf_file:
            _unpack(place, gguf_file, repo / "snapshots" / "local")
        else:
            (repo / "snapshots" / "local").symlink_to(place, target_is_directory=True)
        part.chmod(0o755)
        part.rename(hub)
    except OSError:
        if not hub.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpack(place: str, gguf_file: str, folder: Path) -> None:
    """Save what a GGUF file holds as an ordinary model folder, without its quantisation entry."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=gguf_file)
    if not tokenizer.chat_template:
        sys.exit(f"{gguf_file} {NO_TEMPLATE}")
    model = AutoModelForCausalLM.from_pretrained(
        place,
        gguf_file=gguf_file,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.generation_config.do_sample = True  # so that the server obeys temperature; at 0 it is greedy
    model.to(getattr(torch, STORED)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    serve(*sys.argv[1:])
