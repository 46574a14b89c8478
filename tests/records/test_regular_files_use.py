"""Files are opened, made and written through `records`, and text is printed through `records.terminal`, alone."""

import ast
from collections import Counter
from pathlib import Path

import pytest

import kleiber

SOURCES = Path(kleiber.__file__).parents[1]
# Calls by the name of the function or method, or by their last two names.
NAMES = {"open", "print", "save_file", "save_model", "load_model", "load_file", "safe_open", "ParquetFile", "ZipFile"}
METHODS = {
    "open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "makedirs", "touch", "symlink_to",
    "hardlink_to", "tofile", "fromfile", "memmap", "from_pretrained", "save_pretrained", "echo", "secho",
    "print_exception", "Console", "ParquetFile", "ZipFile",
}  # fmt: skip
PAIRS = {
    "os.replace", "os.link", "os.symlink", "shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copytree",
    "shutil.move", "np.load", "np.save", "np.savez", "np.loadtxt", "np.genfromtxt", "torch.load", "torch.save",
    "json.load", "json.dump", "yaml.safe_load", "OmegaConf.load", "OmegaConf.save", "sqlite3.connect", "chart.save",
    "tempfile.mkdtemp", "tempfile.mkstemp", "pd.read_csv", "pd.read_json", "pd.read_parquet", "parquet.read_table",
    "stdout.write", "stderr.write",
}  # fmt: skip
DOORS = ("records/regular_files.py", "records/terminal.py")

# What else opens or prints, by the reason why it may. A call that is not in this list, or no longer in the code, fails.
SYSTEM = "a file by which the system describes the machine"
PACKAGE = "a file of the package, or of an extension that the command line names"
READER = "data or a file that the reader's command line names"
CHECKED = "a library opens a file that was checked before, or a new one in a folder of its own"
ALLOWED = {
    SYSTEM: """
        config/model_size.py read_text
        records/directory_lock.py LOCKS.read_text
        records/environment.py read_text
        training/energy.py _cpu_times.read_text
        training/energy.py counter.read_text
        training/energy.py read_text
        training/memory.py read_text
        launch/process.py open""",
    PACKAGE: """
        config/extensions.py file.read_text
        config/compose.py OmegaConf.load
        config/labels.py file.read_text
        config/targets.py file.read_text
        config/words.py read_text
        config/words.py file.read_text
        config/words.py yaml.safe_load
        data/builtin.py tokenize.open
        kleiber_topics/judging/server.py read_text
        types/__init__.py read_text""",
    READER: """
        data/blocks.py ParquetFile
        data/prompts.py path.read_text
        data/read_errors.py open
        data/read_errors.py system.open
        kleiber_topics/bias/word_lists.py path.read_text
        kleiber_topics/bias/word_lists.py read_text""",
    CHECKED: """
        data/cache.py os.replace
        data/text.py np.fromfile
        kleiber_topics/retrieval/scoring.py np.memmap
        models/hf.py kind.from_pretrained
        models/hf_pretrained.py kind.from_pretrained
        models/hf_pretrained.py safe_open
        objectives/reference.py np.savez
        records/arrays.py np.load
        records/arrays.py np.save
        records/arrays.py zipfile.ZipFile
        records/files.py os.replace
        records/locks.py tempfile.mkdtemp
        runs/completion.py AutoTokenizer.from_pretrained
        runs/huggingface.py AutoTokenizer.from_pretrained
        runs/huggingface.py hf_model.save_pretrained
        runs/huggingface.py save_pretrained
        studies/compare/item_scores.py parquet.ParquetFile
        studies/laws/table_files.py parquet.ParquetFile
        studies/laws/table_files.py parquet.read_table
        studies/laws/table_files.py pd.read_csv
        studies/laws/table_files.py pd.read_json
        studies/laws/table_files.py pd.read_parquet
        training/checkpoint.py os.open
        training/checkpoint.py os.replace
        training/checkpoint.py part.mkdir
        training/checkpoint.py save_file
        training/checkpoint.py save_model
        training/checkpoint.py torch.save
        training/saved_checkpoint.py load_model
        training/saved_checkpoint.py torch.load""",
    "the remote copy of a checkpoint, which fsspec opens; locally in a folder of its own": """
        training/remote.py os.replace
        training/remote.py self.open
        training/remote.py system.makedirs""",
    "a folder, which is opened to be locked": """
        records/directory_lock.py os.open""",
    "a pipe to a process of kleiber": """
        data/builtin.py print
        launch/price_estimate.py json.load
        launch/price_estimate.py stdout.write""",
}


def calls(source: str) -> Counter[str]:
    """How often a source calls what may open, make or print, by its last two names, or by the last one alone."""
    found: Counter[str] = Counter()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name):
            found[function.id] += function.id in NAMES
        elif isinstance(function, ast.Attribute):
            last = function.attr
            before = function.value.attr if isinstance(function.value, ast.Attribute) else None
            before = function.value.id if isinstance(function.value, ast.Name) else before
            pair = last if before is None else f"{before}.{last}"
            found[pair] += last in METHODS or pair in PAIRS
    return +found


def is_absent_topic(place: str) -> bool:
    """Whether a module belongs to a topic that has been taken out."""
    return place.startswith("kleiber_topics/") and not (SOURCES / place).parent.is_dir()


@pytest.mark.slow
def test_only_the_modules_for_it_open_make_or_print():
    listed = {tuple(line.split()) for lines in ALLOWED.values() for line in lines.strip().splitlines()}
    expected = {(place, call) for place, call in listed if not is_absent_topic(place)}
    present = {
        (place, call)
        for path in SOURCES.rglob("*.py")
        if (place := str(path.relative_to(SOURCES)).removeprefix("kleiber/")) not in DOORS
        for call in calls(path.read_text())
    }
    assert present - expected == set(), "open files through kleiber.records.regular_files, .files or .arrays"
    assert expected - present == set(), "the list names calls that are gone"


def test_each_way_to_open_or_print_is_seen():
    for text in (
        "open('a')", "path.open('w')", "Path('a').write_text('')", "(a / 'b').read_bytes()", "gzip.open(a)",
        "os.open(a, 0)", "np.load(a)", "torch.load(a)", "safe_open(a)", "print(1)", "typer.echo(1)", "a.mkdir()",
        "shutil.copy(a, b)", "json.load(file)", "sys.stdout.write('')", "rich.console.Console()", "pd.read_csv(a)",
        "pyarrow.parquet.ParquetFile(a)", "Model.from_pretrained(a)", "os.makedirs(a)",
    ):  # fmt: skip
        assert sum(calls(text).values()) == 1, text
