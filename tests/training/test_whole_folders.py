"""The whole folders of the real series that are wrong in real ways, where they are at hand."""

from pathlib import Path

import pytest

from tests.jobs.test_edge_cases import check_verdict, documented

WHOLE = Path("../shared/data/edge-cases")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("folder", sorted(WHOLE.glob("*")), ids=str)
def test_each_whole_folder_has_the_verdict_of_its_extract(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert folder.name in documented()
    check_verdict(folder, tmp_path, capsys)
