"""docs/results.md is what its template and the committed records give, and a wrong directive is named by its line."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from study_records import predictions, write_run

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def build():
    """docs/results/build.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("build_results", DOCS / "results" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def records(tmp_path, build):
    """Made-up records of a study."""
    for seed, (balanced, parameters) in enumerate([(0.50, 1000), (0.53, 1000)]):
        write_run(tmp_path / "iid", f"dense-s{seed}", balanced_accuracy=balanced, parameters=parameters)
    for seed, (balanced, parameters) in enumerate([(0.51, 200), (0.50, 301)]):
        write_run(tmp_path / "iid", f"pruned-s{seed}", balanced_accuracy=balanced, parameters=parameters)
    write_run(tmp_path / "pairs", "a-s0", found=predictions([1, 1, 1, 1, 1, 1, 1, 1]))
    write_run(tmp_path / "pairs", "b-s0", found=predictions([0, 0, 0, 0, 0, 0, 0, 0]))
    (tmp_path / "focus.json").write_text(json.dumps({"heads": {"p": 0.7512}, "list": [3, 4]}))
    (tmp_path / "wire.jsonl").write_text('{"up": 5}\n{"up": 7000}\n')
    return tmp_path


def test_the_committed_page_is_current(build):
    template = (DOCS / "results" / "template.md").read_text(encoding="utf-8")
    made = build.page(template, DOCS / "results")
    assert (DOCS / "results.md").read_text(encoding="utf-8") == made, "run: make results"


@pytest.mark.parametrize(
    ("directive", "text"),
    [
        ("value iid/dense balanced_accuracy", "0.515"),
        ("value iid/dense balanced_accuracy sd .4f", "0.0212"),
        ("value iid/pruned parameters_share each", "20.0, 30.1"),
        ("value iid/pruned parameters_share max .0f", "30"),
        ("value iid/pruned parameters_share min", "20.0"),
        ("value iid/pruned balanced_accuracy s1", "0.500"),
        ("value iid/pruned bytes_up_total", "2.5"),
        ("difference iid/pruned balanced_accuracy iid/dense", "−1.0"),
        ("difference iid/pruned balanced_accuracy iid/dense s0", "+1.0"),
        ("difference pairs/b accuracy pairs/a", "−100.0 [−100.0, −100.0]"),
        ("difference pairs/b accuracy pairs/a low", "−100.0"),
        ("setting iid/dense federation.rounds", "2"),
        ("json focus.json heads.p .2f", "0.75"),
        ("json focus.json list.1", "4"),
        ("json wire.jsonl 1.up ,", "7,000"),
        ("table iid --metrics\n  balanced_accuracy --seeds 1 --cells pruned,dense --titles 'cut|all of it' "
         "--reference dense",
         "|  | cut | all of it |\n|---|---|---|\n| Seeds | 1 | 1 |\n| Balanced accuracy | 0.500 | 0.530 |\n"
         "| difference to all of it, points | −3.0 |  |\n\nNo intervals: test predictions were not kept."),
    ],
)  # fmt: skip
def test_what_directives_give(build, records, directive, text):
    assert build.page(f"before {{{{{directive}}}}} after", records) == f"{build.NOTICE}before {text} after"


@pytest.mark.parametrize(
    ("directive", "words"),
    [
        ("tabel iid", "unknown directive 'tabel'; there are table,"),
        ("", "unknown directive ''"),
        ("table nowhere", "there are no records 'nowhere'"),
        ("table", "arguments are required: studies"),
        ("table iid --metric", "--metric"),
        ("table iid --metrics x", "no metric 'x' in the records"),
        ("table iid --cells dense,deep", "no cell 'deep'; there are dense, pruned"),
        ("table iid --seeds 9", "no run with seed 9"),
        ("table iid --titles a", "1 titles for 2 cells"),
        ("table iid --reference deep", "no cell 'deep' to compare with"),
        ("value iid/deep accuracy", "no cell 'deep'"),
        ("value iid/dense acuracy", "no metric 'acuracy'"),
        ("value iid/dense recall.bcc", "recall.bcc is not defined in every run of dense"),
        ("value iid/dense accuracy median", "unknown statistic 'median'"),
        ("value iid/dense accuracy s7", "unknown statistic 's7'"),
        ("value iid/dense accuracy mean .3q", "Unknown format code"),
        ("difference iid/dense accuracy iid/pruned low", "test predictions were not kept"),
        ("difference iid/dense accuracy iid/pruned middle", "unknown part 'middle'"),
        ("difference iid/dense macs_share iid/pruned", "not compared"),
        ("setting iid/dense federation.round", "config.yaml has no 'federation.round'"),
        ("json nowhere.json x", "cannot be read"),
        ("json focus.json list.2", "focus.json has no 'list.2'"),
        ("value 'iid/dense", "No closing quotation"),
    ],
)
def test_a_wrong_directive_is_named_with_its_line(build, records, directive, words):
    with pytest.raises(build.PageError) as error:
        build.page(f"one\ntwo {{{{{directive}}}}}\n", records)
    assert str(error.value).startswith(f"line 2: {{{{{directive}}}}}: ")
    assert words in str(error.value)


def test_all_wrong_directives_are_named_at_once(build, records):
    with pytest.raises(build.PageError) as error:
        build.page("{{a}}\n\n{{value iid/dense accuracy}} {{b}}", records)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["line 1", "line 3"]


def test_committed_records_hold_no_path_of_a_machine():
    """Whatever way they came there."""
    texts = [path for path in (DOCS / "results").rglob("*") if path.suffix in (".yaml", ".json", ".jsonl")]
    assert texts
    for path in texts:
        found = re.search(
            r"""(?<![\w.:/~<>-])/(?:home|root|tmp|work|Users|mnt|var)/[^\s"']*""", path.read_text(encoding="utf-8")
        )
        assert not found, f"{path}: {found[0]}"
