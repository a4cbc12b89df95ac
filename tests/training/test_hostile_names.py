"""Names that no file can have, or that two runs would share, end in one line and exit code 2."""

import pytest

LONG = "x" * 300
STUDY = "--study=configs/studies/smoke.py"
SMOKE = ("train.py", "--config=configs/smoke.py:rope")


@pytest.mark.default_cases(6)
@pytest.mark.parametrize(
    "command",
    [
        (*SMOKE, "--workdir={tmp}/" + LONG),
        (*SMOKE, "--workdir=" + 20 * f"/{LONG[:250]}"),
        (*SMOKE, "--workdir={tmp}/x", "--config.data.data_dir={tmp}/" + LONG),
        (*SMOKE, "--workdir={tmp}/x", "--config.data.tokenizer=" + LONG),
        (*SMOKE, "--workdir={tmp}/x", "--config.data.corpus=text_folder", "--config.data.folder=" + LONG),
        (*SMOKE, "--workdir={tmp}/x", "--config.train.init_from=" + LONG),
        (*SMOKE, "--workdir={tmp}/x{seed}", "--seeds=1,01"),
        (*SMOKE, "--workdir={tmp}/x{seed}", "--seeds=1,\u0661"),
        (*SMOKE, "--workdir={tmp}/x", "--profile=\u0661:1"),
        ("scripts/evaluate.py", "--workdir={tmp}/" + LONG),
        ("scripts/evaluate.py", "--workdir={tmp}", "--lengths=1,01"),
        ("scripts/report.py", "--workdir={tmp}/" + LONG),
        ("scripts/verdict.py", "--workdir={tmp}/" + LONG),
        ("scripts/study.py", STUDY, "--workdir={tmp}/" + LONG),
        ("scripts/study.py", "--study={tmp}/" + LONG + ".py", "--workdir={tmp}/x"),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_is_one_line(tmp_path, forks, command):
    run = forks.run(*(part.replace("{tmp}", str(tmp_path)) for part in command))
    assert run.returncode == 2, run.stderr
    assert len(run.stderr.strip().splitlines()) == 1, run.stderr
    assert not list(tmp_path.glob("x*"))
