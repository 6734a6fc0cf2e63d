"""Where the vision-language model is, what it may cost in time and money, and who has its key.

Any server that speaks OpenAI's chat completions: OpenAI itself, vLLM, llama.cpp, Ollama. The key
is read from an environment variable when it is needed; it is no field, stands in no file, and
goes to no other server than the one it is named for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

OPENAI_URL = 'https://api.openai.com/v1'
OPENAI_KEY = 'OPENAI_API_KEY'
# The client insists on a key; servers that want none ignore it.
NO_KEY = 'none'
# Environment variables that a configuration without these fields falls back on.
FROM_ENVIRONMENT = {'base_url': 'OPENAI_BASE_URL', 'model': 'GRAPE_VLM_MODEL'}


class VlmError(RuntimeError):
    """The model gave no usable answer; the text says why and what to do."""


class VlmConfig(BaseModel):
    """One model on one server."""

    model_config = ConfigDict(frozen=True, extra='forbid')

    base_url: str = OPENAI_URL
    model: str = Field('gpt-4o', min_length=1)  # the paper's
    # Name of the variable that holds the key; None: OPENAI_API_KEY for OpenAI, else no key.
    api_key_env: str | None = Field(None, pattern=r'^[A-Za-z_][A-Za-z0-9_]*$')
    timeout_s: float = Field(120.0, gt=0)  # for one answer, from the request to its last byte
    connect_timeout_s: float = Field(10.0, gt=0)
    temperature: float | None = Field(0.0, ge=0, le=2)  # None: the model's own
    max_tokens: int = Field(4096, ge=1)  # of an answer
    token_limit_name: Literal['max_tokens', 'max_completion_tokens'] = 'max_tokens'
    response_format: Literal['json_object', 'text'] = 'json_object'  # text: not asked for
    retries: int = Field(3, ge=0)  # after 429, 5xx, a broken connection or no answer
    backoff_s: float = Field(1.0, ge=0)  # before the first retry; doubles
    retry_after_cap_s: float = Field(60.0, ge=0)  # a server that asks for more is given up
    corrections: int = Field(2, ge=0)  # how often a wrong answer is sent back with what is wrong
    max_reply_bytes: int = Field(1_000_000, ge=1000)
    input_usd_per_million: float | None = Field(None, ge=0)  # None: the cost is not known
    output_usd_per_million: float | None = Field(None, ge=0)

    @model_validator(mode='after')
    def _plain_address(self) -> VlmConfig:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ('http', 'https') or not parts.hostname:
            raise ValueError(
                f"base_url is '{self.base_url}'; expected http(s)://host[:port]/v1 or the like"
            )
        if parts.username or parts.password or parts.query:
            raise ValueError(
                'base_url holds a user, password or query; a key belongs in the environment '
                'variable that api_key_env names'
            )
        return self

    @property
    def is_openai(self) -> bool:
        """Whether this is OpenAI's own server."""
        return urlsplit(self.base_url).hostname == urlsplit(OPENAI_URL).hostname

    @property
    def key_name(self) -> str | None:
        """The environment variable of the key; None where none is sent."""
        return self.api_key_env or (OPENAI_KEY if self.is_openai else None)

    def api_key(self) -> str:
        """Return the key, NO_KEY where none is sent.

        Raises:
            VlmError: the variable is not set.

        """
        if self.key_name is None:
            return NO_KEY
        key = os.environ.get(self.key_name, '').strip()
        if not key:
            raise VlmError(
                f'the environment variable {self.key_name} with the key for {self.base_url} is '
                'not set. Set it; or name a local server that wants none (base_url); or leave the '
                'model out: the built-in templates need none.'
            )
        return key

    def cost_usd(self, prompt_tokens: int | None, reply_tokens: int | None) -> float | None:
        """Return what an answer costs; None where prices or counts are not known."""
        prices = (self.input_usd_per_million, self.output_usd_per_million)
        if None in (*prices, prompt_tokens, reply_tokens):
            return None
        return (prices[0] * prompt_tokens + prices[1] * reply_tokens) / 1e6


def load_vlm_config(path: Path | str | None = None, **given: object) -> VlmConfig:
    """Return a configuration: what is given, over the file, over the environment, over defaults.

    Args:
        path: a YAML file with fields of VlmConfig; None: no file.
        given: fields; None counts as not given.

    Raises:
        VlmError: no such file, an unknown field, a value out of range.

    """
    content: dict[str, object] = {
        field: os.environ[name] for field, name in FROM_ENVIRONMENT.items() if os.environ.get(name)
    }
    where = 'the configuration of the model'
    if path is not None:
        where = f"'{path}'"
        try:
            read = yaml.safe_load(Path(path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise VlmError(f'{where} cannot be read: {error}') from error
        except yaml.MarkedYAMLError as error:
            # Not yaml's own text: it repeats the line, and what should not be in it.
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise VlmError(f'{where} line {line} is not YAML: {error.problem}.') from None
        if not isinstance(read, dict):
            raise VlmError(f'{where} holds {type(read).__name__}; expected a mapping.')
        if 'api_key' in read:
            raise VlmError(
                f"{where} holds 'api_key'. Take the key out of the file, and name the environment "
                "variable that holds it as 'api_key_env'."
            )
        content |= read
    content |= {field: value for field, value in given.items() if value is not None}
    try:
        return VlmConfig.model_validate(content)
    except ValidationError as error:
        # Not pydantic's own text: it repeats the input, and a password with it.
        lines = [
            f'  {".".join(map(str, problem["loc"])) or "the whole"}: {_reason(problem["msg"])}'
            for problem in error.errors(include_input=False)
        ]
        fields = ', '.join(VlmConfig.model_fields)
        raise VlmError('\n'.join([f'{where}:', *lines, f'There are: {fields}.'])) from None


def _reason(message: str) -> str:
    return message.removeprefix('Value error, ')
