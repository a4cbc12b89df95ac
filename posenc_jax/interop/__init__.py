"""Other people's checkpoints and harnesses; docs/importing.md and docs/lm_eval.md have the
commands.

huggingface.py    folders of transformers as our parameters, and back; families.py lists the models
gguf_file.py      GGUF files, checked and dequantised
imported_run.py   an imported checkpoint as the folder of a run
lm_eval.py        a run as a model of lm-evaluation-harness
lm_eval_tasks.py  our retrieval tasks as tasks and groups of the harness
harness.py        one call of the harness: its results, and rows
token_text.py     token ids as text, and back
"""
