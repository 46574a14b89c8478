"""Preparing text: rate against tiktoken's own batches, cores in use, memory, disk, and work that kills repeat.

Writes JSON lines of shuffled sentences of the built-in text, trains a tokenizer on them, and prepares them in a fresh
process: once without a break, and once killed three times. The second must end with the same hash. Numbers are of all
processes together; anonymous memory is what the system cannot take back (RssAnon).

    python benchmarks/prepare.py --megabytes 2000 --folder /tmp/prepare
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PREPARE = """
import sys
from kleiber.data.text import Text
print(Text(sys.argv[1], tokenizer="bpe", vocab_size=8192).prepare(256).hash)
"""
KILLS = 3
INTERVAL = 0.1  # seconds between two looks at the processes
TICK = os.sysconf("SC_CLK_TCK")


def write_lines(path: Path, size: int) -> list[str]:
    """Writes documents of 5 to 60 sentences until the file has `size` bytes; returns the first 16 MB of documents."""
    from kleiber.data.documents import open_documents

    with open_documents("builtin/docs", max_bytes=20_000_000) as documents:
        sentences = [sentence for text in documents.texts for sentence in text.split(". ")]
    draw, written, first, characters = random.Random(0), 0, [], 0
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            text = ". ".join(draw.choices(sentences, k=draw.randint(5, 60)))
            written += file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            if characters < 16_000_000:
                first.append(text)
                characters += len(text)
    return first


def batch_rate(source: str, texts: list[str], cores: int) -> tuple[float, float]:
    """MB of text a second, and a second of processor time, of tiktoken's encode_ordinary_batch with a thread a core."""
    from kleiber.data.cache import cache_root
    from kleiber.data.text import Text
    from kleiber.data.tokenizers import train_bpe

    encoding = train_bpe([Text(source).source()], 8192, cache_root())._encoding
    size, wall, seconds = sum(len(text.encode()) for text in texts), float("inf"), float("inf")
    for _ in range(3):
        began, used = time.perf_counter(), time.process_time()
        encoding.encode_ordinary_batch(texts, num_threads=cores)
        wall, seconds = min(wall, time.perf_counter() - began), min(seconds, time.process_time() - used)
    return size / wall / 1e6, size / seconds / 1e6


def tree(process: int) -> list[int]:
    """The ids of a process and of the processes that it started."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [process, *(other for child in children for other in tree(int(child)))]


def look(process: int) -> tuple[float, int]:
    """Seconds of processor time and bytes of anonymous memory."""
    seconds, memory = 0.0, 0
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        seconds = (int(fields[11]) + int(fields[12])) / TICK
        status = Path(f"/proc/{process}/status").read_text()
        memory = int(status.partition("RssAnon:")[2].split()[0]) * 1024
    except (FileNotFoundError, ProcessLookupError, IndexError):
        pass
    return seconds, memory


def folder_bytes(folder: Path) -> int:
    """Bytes on disk below a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


class Attempt:
    """One run of the preparation, watched until it ends or until `fraction` of the tokens are on disk."""

    def __init__(self, source: Path, cache: Path, stop_bytes: float | None) -> None:
        environment = {**os.environ, "KLEIBER_CACHE": str(cache)}
        process = subprocess.Popen(
            [sys.executable, "-c", PREPARE, str(source)], env=environment, stdout=subprocess.PIPE, text=True
        )
        began, seconds, self.memory, self.disk, self.hash = time.monotonic(), {}, 0, 0, ""
        before = folder_bytes(cache)
        while process.poll() is None:
            time.sleep(INTERVAL)
            looks = {number: look(number) for number in tree(process.pid)}
            seconds |= {number: max(seconds.get(number, 0.0), spent) for number, (spent, _) in looks.items()}
            self.memory = max(self.memory, sum(memory for _, memory in looks.values()))
            self.disk = max(self.disk, folder_bytes(cache) - before)
            if stop_bytes is not None and folder_bytes(cache) > stop_bytes:
                process.send_signal(signal.SIGKILL)
                process.wait()
        self.wall, self.seconds = time.monotonic() - began, sum(seconds.values())
        if process.returncode == 0:
            self.hash = process.communicate()[0].strip()
        else:
            process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/kleiber-prepare"), help="is deleted at the end")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    options.folder.mkdir(parents=True)
    source, cache = options.folder / "text.jsonl", options.folder / "cache"
    os.environ["KLEIBER_CACHE"] = str(cache)
    try:
        texts = write_lines(source, options.megabytes * 1_000_000)
        rate, rate_of_processor = batch_rate(str(source), texts, cores)
        size, start = source.stat().st_size, folder_bytes(cache)
        shutil.copytree(cache, options.folder / "killed")  # both have the tokenizer
        whole = Attempt(source, cache, None)
        tokens = sum(path.stat().st_size for path in cache.glob("*/*-*.bin"))
        print(f"{size / 1e9:.2f} GB of JSON lines, {tokens / 1e9:.2f} GB of tokens, {cores} cores")
        print(f"rate: {size / whole.wall / 1e6:.1f} MB/s; tiktoken's batches {rate:.1f}")
        ours = size / whole.seconds / 1e6
        print(f"a second of processor time: {ours:.1f} MB; tiktoken's batches {rate_of_processor:.1f}")
        busy = whole.seconds / whole.wall / cores
        print(f"processor time: {whole.seconds:.0f} s in {whole.wall:.0f} s, {busy:.2f} of the cores")
        print(f"anonymous memory: {whole.memory / 1e6:.0f} MB; disk: {whole.disk / tokens:.2f} of the tokens")
        stops = [start + tokens * (kill + 1) / (KILLS + 1) for kill in range(KILLS)]
        attempts = [Attempt(source, options.folder / "killed", stop) for stop in (*stops, None)]
        spent = sum(attempt.seconds for attempt in attempts)
        equal = attempts[-1].hash == whole.hash
        print(f"killed {KILLS} times: {spent / whole.seconds - 1:+.1%} of processor time, equal hash: {equal}")
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
