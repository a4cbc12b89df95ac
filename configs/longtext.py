"""Long-text classification: the package, of eight, from which a definition comes; trained at L.

Command:  python train.py --config=configs/longtext.py:rope+alibi --workdir=runs/c
          python scripts/evaluate.py --workdir=runs/c --suite=C
Reaches:  not measured over seeds; chance is 0.125, and the row longtext_bag_corrected is naive
          Bayes on the bag of bytes
Takes:    two minutes of training and one of evaluation on two cores

The class is predicted at the end of a document (see posenc_jax/tasks/longtext.py). Whole files:
--config.data.corpus=stdlib_packages --config.train.length=2048. Positive or negative film reviews:
--config.data.corpus=imdb_reviews --config.train.length=512, with --config.data.download=True the
first time. Rows are of dev; `--split=test` is for a final measurement.
"""

from ml_collections import ConfigDict

from configs import lm


def get_config(scheme: str = "rope+alibi") -> ConfigDict:
    """Returns the configuration for one scheme (a line of the scheme grammar)."""
    config = lm.get_config(scheme)
    config.data.update(
        task="classification", corpus="stdlib_definitions", retrieval_share=0.0, text_weight=1.0
    )
    # A few hundred documents are soon memorised: few epochs, and a low learning rate.
    config.train.update(length=256, batch_size=8, steps=300, save_every=100)
    config.optimizer.update(learning_rate=3e-3, muon_learning_rate=1e-2, weight_decay=0.1)
    config.evaluation.batch_tokens = 4352  # two of the longest rows
    return config
