"""Hugging Face models and corpora that several test files read; transformers is imported when they are needed."""

import pytest


@pytest.fixture(scope="session")
def tokenizer():
    from tests.helpers.pretrained_models import make_tokenizer

    return make_tokenizer()


@pytest.fixture(scope="session")
def folders(tmp_path_factory, tokenizer):
    """For each kind of model the folder that holds one."""
    import transformers

    from tests.helpers.pretrained_models import KINDS, save_model

    transformers.utils.logging.disable_progress_bar()
    made = {kind: str(tmp_path_factory.mktemp(kind)) for kind in KINDS}
    for kind, folder in made.items():
        save_model(kind, folder, tokenizer)
    return made


@pytest.fixture(scope="session")
def lines(tmp_path_factory):
    """A folder with a file of texts, and one of prompts with references."""
    from tests.helpers.pretrained_models import write_lines

    folder = tmp_path_factory.mktemp("lines")
    write_lines(folder)
    return folder
