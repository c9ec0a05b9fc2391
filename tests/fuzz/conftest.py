from tests.fuzz.damage import SEED


def pytest_report_header() -> str:
    return f"fuzzing with APPSSL_FUZZ_SEED={SEED}"
