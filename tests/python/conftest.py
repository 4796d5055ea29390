import pytest
from command_line import small_model, write_model


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model", small_model())
