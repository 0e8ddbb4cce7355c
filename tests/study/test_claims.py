"""The claims' verdicts follow from the numbers, and from nothing else."""

import json

import pytest
from builders import finished_run, study_of

from lgqlib.study.claims import NOT_REPRODUCED, REPRODUCED, UNDECIDED, claims_table, write_claims
from lgqlib.study.results import finished

NOISE = (0.0, 0.01, -0.01)


def made(folder, truth, *, seeds=3, usage=()):
    """Give runs of a study from {(method, K): numbers}, with a little noise between seeds.

    `usage`: perplexities of LGQ with the weight 0.03 of its usage term, and with 0.3.
    """
    runs = []
    for seed, noise in list(enumerate(NOISE))[:seeds]:
        for (method, num_codes), numbers in truth.items():
            factor = 1 + noise * (1 if method == "lgq" else 0.5)
            noisy = {key: value * factor for key, value in numbers.items()}
            named = dict(method=method, num_codes=num_codes, seed=seed)
            runs.append((finished_run(folder, numbers=noisy, **named), ""))
        for weight, perplexity in zip((0.03, 0.3), usage, strict=False):
            numbers = {"perplexity": perplexity * (1 + noise)}
            run = finished_run(folder, seed=seed, more=f"loss.usage={weight}", numbers=numbers)
            runs.append((run, f"usage {weight}"))
    return finished(study_of(folder, runs))


def verdicts(*arguments, **options):
    return claims_table(made(*arguments, **options))["verdict"]


def numbers(kid, psnr, bits, active, perplexity):
    rates = {"bits_per_token_coded": bits, "bits_per_token_entropy": bits}
    counts = {"active": active, "perplexity": perplexity}
    return {"kid": kid, "fd": 100 * kid, "psnr": psnr} | rates | counts


AS_CLAIMED = {
    ("lgq", 1024): numbers(0.05, 24.0, 8.5, 510, 400),
    ("lgq", 4096): numbers(0.03, 26.0, 10.5, 2000, 1500),
    ("fsq", 1024): numbers(0.09, 23.0, 9.5, 1024, 900),
    ("fsq", 4096): numbers(0.08, 24.0, 11.5, 4090, 3500),
    ("simvq", 4096): numbers(0.06, 25.0, 11.6, 4000, 3600),
    ("vq", 1024): numbers(0.1, 20.0, 5.0, 60, 40),
    ("vq", 4096): numbers(0.1, 20.0, 5.0, 60, 38),
}
IDS = ["C1", "C2", "C3", "C3, entropy", "C3, coded", "C4", "C5", "C6", "C7", "C8"]


def test_a_study_that_shows_what_the_paper_claims(tmp_path):
    runs = made(tmp_path, AS_CLAIMED, usage=(100, 600))
    table = claims_table(runs)
    assert list(table.index) == IDS
    assert set(table["verdict"]) == {REPRODUCED}, table.to_string()
    written = json.loads(write_claims(runs, tmp_path).read_text())["claims"]
    assert [c["id"] for c in written] == IDS and {"text", "verdict", "paper"} < set(written[0])


def test_a_study_that_shows_the_opposite(tmp_path):
    truth = AS_CLAIMED | {("lgq", 4096): numbers(0.2, 18.0, 11.0, 4095, 20)}
    found = verdicts(tmp_path, truth, usage=(600, 100))
    # Fewer coded bits than SimVQ it still has, but with a worse distance that is no help.
    assert set(found.index[found == NOT_REPRODUCED]) == set(IDS) - {"C6", "C7"}


def test_one_seed_decides_no_claim_about_runs_and_what_is_missing_is_named(tmp_path):
    found = verdicts(tmp_path / "one", AS_CLAIMED, seeds=1, usage=(100, 600))
    assert set(found.index[found != UNDECIDED]) == {"C6", "C7"}, "theorems alone"
    table = claims_table(made(tmp_path / "lgq", {("lgq", 1024): AS_CLAIMED["lgq", 1024]}))
    for id, word in {"C1": "fsq", "C3": "simvq", "C4": "vq", "C8": "loss.usage"}.items():
        assert table.loc[id, "verdict"] == UNDECIDED and word in table.loc[id, "evidence"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        # A lower rate is needed in each meaning of rate.
        ({("simvq", 4096): numbers(0.06, 25.0, 9.0, 4000, 500)}, {"C3": 1, "C3, entropy": -1}),
        # A VQ that does not collapse is not unlike: it grows tenfold, LGQ fourfold.
        ({("vq", 4096): numbers(0.1, 20.0, 5.0, 600, 400)}, {"C4": -1}),
        # FSQ's curve has 23.5 dB at LGQ's 10.5 bits; 0.1 dB less is comparable.
        ({("lgq", 4096): numbers(0.03, 23.95, 10.5, 2000, 1500)}, {"C5": 1}),
        ({("lgq", 4096): numbers(0.03, 22.9, 10.5, 2000, 1500)}, {"C5": -1}),
        ({("lgq", 4096): numbers(0.03, 23.35, 10.5, 2000, 1500)}, {"C5": 0}),
    ],
)
def test_a_claim_of_several_parts_needs_them_all(tmp_path, changed, expected):
    found, words = verdicts(tmp_path, AS_CLAIMED | changed), (UNDECIDED, REPRODUCED, NOT_REPRODUCED)
    assert {id: found[id] for id in expected} == {id: words[d] for id, d in expected.items()}
