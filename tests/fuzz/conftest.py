from tests.fuzz.cases import CASES, FIRST_SEED


def pytest_report_header() -> str:
    return f"fuzz: seeds {FIRST_SEED} to {FIRST_SEED + CASES - 1}"
