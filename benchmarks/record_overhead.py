"""What recording costs over the bare forward pass of the same model on the same tokens.

Both run in one process, turn and turn about, sequence by sequence; the ratio is that of the medians. Run:

    python benchmarks/record_overhead.py [--model random-1b | DIRECTORY] [--sequences 4] [--repeats 5] [--peak]

With --peak each repeat also says the peak of the resident set, of which Linux is asked.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from outlier_moe.architectures.structure import find_structure
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.definitions.taps import TAPS
from outlier_moe.recording.resident import record_resident
from outlier_moe.recording.writer import RecordingWriter

RESET_PEAK = Path("/proc/self/clear_refs")


def random_llama_1b() -> PreTrainedModel:
    """A random Llama of 1B parameters in bfloat16, d_model 2048, some features made large as in trained models."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        dtype=torch.bfloat16,
    )
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight.copy_(torch.exp(0.5 * torch.randn(2048)))
    return model


def load(model: str) -> PreTrainedModel:
    """The benchmark's model: the random one, or a folder's."""
    if model == "random-1b":
        return random_llama_1b()
    return AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()


def peak_mib() -> float:
    """The largest resident set since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    """Measure and print one line a repeat, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random-1b", help="random-1b, or a folder with config and safetensors")
    parser.add_argument("--tokens", type=Path, help="tokens.arrow of that model; random tokens without it")
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--clock",
        choices=["wall", "processor"],
        default="wall",
        help="processor time of one thread tells the ratio on a machine that is busy with other work too",
    )
    parser.add_argument("--peak", action="store_true", help="measure the peak of the resident set too (Linux)")
    parser.add_argument("--taps", nargs="+", default=list(TAPS), choices=TAPS)
    arguments = parser.parse_args()
    clock = time.perf_counter
    if arguments.clock == "processor":
        torch.set_num_threads(1)
        clock = time.process_time
    model = load(arguments.model)
    structure = find_structure(model)
    if arguments.tokens:
        from outlier_moe.sources.tokenization import read_tokens

        tokens = read_tokens(arguments.tokens).tokens[: arguments.sequences, : arguments.length]
    else:
        vocabulary = model.config.vocab_size
        shape = (arguments.sequences, arguments.length)
        tokens = np.random.default_rng(0).integers(0, vocabulary, shape).astype(np.uint32)
    options = RecordOptions(taps=tuple(arguments.taps), chunk=1)

    def bare() -> None:
        with torch.no_grad():
            for row in tokens:
                model(input_ids=torch.from_numpy(row.astype(np.int64))[None], use_cache=False)

    def recorded() -> None:
        with tempfile.TemporaryDirectory() as folder:
            directory, n_layers = Path(folder) / "outliers", len(structure.layers)
            with RecordingWriter(
                directory, tokens=tokens, n_peaks=8, n_layers=n_layers, ladder=options.ladder
            ) as writer:
                record_resident(model, structure, tokens, options, writer, advance=lambda n: None)
                writer.finish({}, lambda ids: "")

    times: dict[str, list[float]] = {"bare": [], "recorded": []}
    peaks: dict[str, list[float]] = {"bare": [], "recorded": []}
    bare()
    recorded()
    for _ in range(arguments.repeats):
        for name, work in (("bare", bare), ("recorded", recorded)):
            if arguments.peak:
                RESET_PEAK.write_text("5")
            started = clock()
            work()
            times[name].append(clock() - started)
            if arguments.peak:
                peaks[name].append(peak_mib())
        print(" ".join(f"{name} {seconds[-1]:.3f} s" for name, seconds in times.items()), end=" ")
        print(" ".join(f"{name} {peak[-1]:.0f} MiB" for name, peak in peaks.items() if peak), flush=True)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    print(
        f"{arguments.model}, {model.dtype}, {tokens.shape[0]} x {tokens.shape[1]} tokens, "
        f"{torch.get_num_threads()} threads, {arguments.clock} time: "
        f"recording takes {medians['recorded'] / medians['bare']:.3f} "
        "of the bare forward pass (medians)"
    )


if __name__ == "__main__":
    main()
