"""Package layers: packages import from layers below only; the light packages stay light."""

import ast
import collections
import functools
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "posenc_jax"
LAYERS = {
    "results": 0,
    "encodings": 1,
    "data": 1,
    "tasks": 2,
    "attention": 3,
    "model": 4,
    "costs": 5,
    "checkpoints": 6,
    "training": 7,
    "evaluation": 8,
    "bench": 9,
    "interop": 10,
    "study": 11,
    "report": 12,
    "cli": 13,
}
ONLY_IN = {
    "orbax": {"checkpoints/manager.py"},
    "ml_collections": set(),
    "absl": {"cli.py"},
    "matplotlib": {"report/"},
    "flax": {
        "model/array_module.py",
        "model/attention_layer.py",
        "model/blocks.py",
        "model/decoder.py",
        "model/feed_forward.py",
        "model/vision.py",
    },
    "optax": {"training/step.py"},
    "tensorflow_datasets": {"data/corpora.py", "data/tfds_sets.py"},
    "grain": {"data/pipeline.py"},
    "lm_eval": {"interop/"},
    "gguf": {"interop/gguf_file.py"},
    "tokenizers": {"data/imported_tokenizer.py"},
    "sklearn": {"data/images.py"},
}
TWICE = {  # base names that two modules may have, and why
    "api": "the entry point of each attention algorithm: blockwise, ring",
    "config": "the model's shape, and the whole run's settings",
    "sharding": "of attention's arrays, and of parameters and batches",
}
FILES = sorted(PACKAGE.rglob("*.py"))


@functools.cache
def imports(path):
    """Every module that a file imports, anywhere in it."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules.append(node.module)
    return modules


def strangers(path, source_package, modules):
    """Imports that break the layers."""
    for module in modules:
        parts = module.split(".")
        if parts[0] == "posenc_jax" and len(parts) > 1 and parts[1] != source_package:
            assert parts[1] in LAYERS, f"{path}: package {parts[1]} has no layer"
            if LAYERS[parts[1]] >= LAYERS[source_package]:
                yield module


def package_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_package_imports_only_from_layers_below(path):
    if path == PACKAGE / "__init__.py":
        assert list(imports(path)) == []
        return
    assert list(strangers(path, package_of(path), imports(path))) == []


def twice(names):
    return {name for name, count in collections.Counter(names).items() if count > 1}


def test_no_two_modules_have_the_same_base_name():
    stems = [path.stem for path in FILES if path.stem != "__init__"]
    assert twice(stems) == set(TWICE)


def test_no_two_classes_have_the_same_name():
    trees = (ast.parse(path.read_text()) for path in FILES)
    nodes = (node for tree in trees for node in ast.walk(tree))
    assert twice(node.name for node in nodes if isinstance(node, ast.ClassDef)) == set()


TESTS = sorted(PACKAGE.parent.glob("tests/**/test_*.py"))
# Folders of tests that belong to no single package.
ACROSS_PACKAGES = {"accelerators", "entry_points", "faults", "repository"}


def test_tests_lie_in_folders_named_as_the_packages():
    folders = {path.relative_to(PACKAGE.parent / "tests").parts[0] for path in TESTS}
    assert (
        folders == {package_of(path) for path in FILES if path.parent != PACKAGE} | ACROSS_PACKAGES
    )


def test_no_two_test_files_have_the_same_base_name():
    assert twice(path.stem for path in TESTS) == set()


def test_the_walk_fails_on_an_extra_edge():
    assert list(strangers("x.py", "encodings", ["posenc_jax.model.config"])) == [
        "posenc_jax.model.config"
    ]
    assert list(strangers("x.py", "encodings", ["posenc_jax.data.tokenizers"])) == [
        "posenc_jax.data.tokenizers"
    ]
    assert list(strangers("x.py", "checkpoints", ["posenc_jax.training.step"])) == [
        "posenc_jax.training.step"
    ]


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_known_only_where_it_belongs(library):
    for path in FILES:
        name = str(path.relative_to(PACKAGE))
        if any(module.split(".")[0] == library for module in imports(path)):
            assert any(name.startswith(place) for place in ONLY_IN[library]), (
                f"{name} imports {library}"
            )


def loaded(statement):
    """Top-level modules in memory after a statement, in a process of its own, and the seconds it took."""
    code = (
        f"import time; t = time.time(); {statement}; import sys; print(time.time() - t); "
        "print(*sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    seconds, modules = out.stdout.splitlines()
    return float(seconds), {m.split(".")[0] for m in modules.split()}


def test_encodings_and_attention_need_jax_and_numpy_alone():
    _, modules = loaded("import posenc_jax.encodings, posenc_jax.attention")
    heavy = {
        "flax",
        "optax",
        "orbax",
        "grain",
        "tensorflow_datasets",
        "absl",
        "ml_collections",
        "matplotlib",
    }
    assert not heavy & modules


def test_the_report_needs_no_jax():
    _, modules = loaded("import posenc_jax.report.page")
    assert not {"jax", "flax"} & modules


def test_the_package_of_results_needs_numpy_alone():
    names = ", ".join(
        f"posenc_jax.results.{path.stem}" for path in (PACKAGE / "results").glob("[a-z]*.py")
    )
    _, before = loaded("import numpy")
    _, after = loaded(f"import numpy, {names}")
    assert after - before - set(sys.stdlib_module_names) == {"posenc_jax"}


def test_the_package_is_imported_in_under_three_seconds():
    start = time.time()
    loaded(
        "import posenc_jax, posenc_jax.encodings, posenc_jax.attention, posenc_jax.model.decoder"
    )
    assert time.time() - start < 3 * 3  # three times over, for a busy machine


MAX_ARGUMENTS = 9
# Pallas calls a kernel with one argument per array.
PALLAS_KERNELS = {"forward_kernel", "dq_kernel", "dkv_kernel"}


def argument_counts(path):
    """Name and number of arguments, without self and cls, of every function in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            names = [
                a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            ]
            bound = names[:1] in (["self"], ["cls"])
            yield getattr(node, "name", "lambda"), len(names) - bound


def test_no_function_takes_more_than_nine_arguments():
    long = {
        f"{path.relative_to(PACKAGE)}:{name}"
        for path in FILES
        for name, count in argument_counts(path)
        if count > MAX_ARGUMENTS and name not in PALLAS_KERNELS
    }
    assert long == set()


def test_arguments_of_lambdas_methods_and_keywords_are_counted(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("class A:\n  def f(self, a, /, b, *, c=1): pass\ng = lambda x, y: x\n")
    assert sorted(argument_counts(path)) == [("f", 3), ("lambda", 2)]


def test_files_stay_readable_in_one_sitting():
    assert [str(p) for p in FILES if len(p.read_text().splitlines()) > 430] == []


def test_lines_are_left_unformatted_only_in_few_tables():
    marked = [
        path
        for folder in ("posenc_jax", "tests", "scripts", "configs")
        for path in sorted((PACKAGE.parent / folder).rglob("*.py"))
        for line in path.read_text().splitlines()
        if line.endswith("# fmt: " + "skip")
    ]
    assert len(marked) < 60
