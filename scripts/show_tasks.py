"""Prints retrieval instances as text: python scripts/show_tasks.py --task=needles_4 --length=200.

Keys are shown as <K12>, values as <V3>, special ids as <BOS>, <SEP>; answers are in [[ ]], their
sources in the context in {{ }}. With --task=all every task is shown. Exit code 2 for wrong input.
"""

import installed  # noqa: F401
from absl import flags

from posenc_jax import cli

_TASK = flags.DEFINE_list("task", ["all"], "Names of posenc_jax/tasks/task_registry.py, or all")
_LENGTH = flags.DEFINE_integer(
    "length", 200, "Tokens of an instance", lower_bound=1, upper_bound=2**24
)
_SPLIT = flags.DEFINE_string("split", "dev", "train, dev or test")
_INDEX = flags.DEFINE_integer(
    "index", 0, "The first instance shown", lower_bound=0, upper_bound=2**62
)
_COUNT = flags.DEFINE_integer("count", 1, "Instances of each task", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the instances")
_CORPUS = flags.DEFINE_string("corpus", "python_stdlib", "Corpus of the text around the needles")
_FOLDER = flags.DEFINE_string("folder", None, "Folder of text, for --corpus=text_folder")
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Folder of prepared corpora")
_TOKENIZER = flags.DEFINE_string("tokenizer", "bytes", "bytes, or a SentencePiece model")


def main() -> None:
    """Prints the instances of the flags."""
    from posenc_jax.data.corpora import open_corpus
    from posenc_jax.data.token_stream import open_stream
    from posenc_jax.data.tokenizers import open_tokenizer
    from posenc_jax.tasks.filler import Filler
    from posenc_jax.tasks.instance_text import render_instance
    from posenc_jax.tasks.instances import check_split
    from posenc_jax.tasks.task_registry import TASKS, find

    check_split(_SPLIT.value)
    every = _TASK.value == ["all"]
    tasks = [find(name) for name in (TASKS if every else _TASK.value)]
    tokenizer = open_tokenizer(_TOKENIZER.value)
    corpus = open_corpus(_CORPUS.value, _DATA_DIR.value, folder=_FOLDER.value)
    stream = open_stream(corpus, _SPLIT.value, tokenizer, _DATA_DIR.value)
    text = Filler(stream, tokenizer)
    sentences = Filler(None, tokenizer, corpus=False)
    for task in tasks:
        filler = sentences if task.sentences else text
        if every and _LENGTH.value < task.shortest(filler):
            print(f"{task.id} {task.name}: needs {task.shortest(filler)} tokens\n")
            continue
        for index in range(_INDEX.value, _INDEX.value + _COUNT.value):
            instance = task.instance(
                filler, split=_SPLIT.value, seed=_SEED.value, index=index, length=_LENGTH.value
            )
            print(f"{task.id} {task.name}, {_SPLIT.value} {index}")
            print(render_instance(instance, filler, tokenizer), end="\n\n")


if __name__ == "__main__":
    cli.run_main(main)
