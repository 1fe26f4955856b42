"""Hugging Face models and corpora for several test modules. The fixtures import transformers only when used."""

import pytest


@pytest.fixture(scope="session")
def tokenizer():
    from tests.helpers.pretrained_models import make_tokenizer

    return make_tokenizer()


@pytest.fixture(scope="session")
def folders(tmp_path_factory, tokenizer):
    """Folders with a model of each kind, by the name of the kind."""
    import transformers

    from tests.helpers.pretrained_models import KINDS, save_model

    transformers.utils.logging.disable_progress_bar()
    made = {kind: str(tmp_path_factory.mktemp(kind)) for kind in KINDS}
    for kind, folder in made.items():
        save_model(kind, folder, tokenizer)
    return made


@pytest.fixture(scope="session")
def lines(tmp_path_factory):
    """A folder with a file of texts and a file of prompts with references."""
    from tests.helpers.pretrained_models import write_lines

    folder = tmp_path_factory.mktemp("lines")
    write_lines(folder)
    return folder
