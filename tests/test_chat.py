"""Conversations rendered turn by turn, against the Jinja templates of the formats."""

import itertools
import subprocess

import gguf
import jinja2.sandbox
import pytest

from tokenizer_files import SMOLLM2, build_tool, pack, write_vocabulary

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
QWEN25 = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen. You\'re helpful, so use \\boxed{}.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
QWEN3 = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {{- "# Tools\n\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\n' + message.content.split('</think>')[-1].lstrip('\n') }}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
LLAMA31 = r"""{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token}}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")
MISTRAL_NUMBERED = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if WHERE and system_message is defined %}
            {{- "OPEN" + system_message + "\\n\\n" + message["content"] + "CLOSE" }}
        {%- else %}
            {{- "OPEN" + message["content"] + "CLOSE" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- "ANSWER" + message["content"] + eos_token}}
    {%- endif %}
{%- endfor %}
"""


def numbered(where, opening, closing, answer, tools=""):
    template = MISTRAL_NUMBERED.replace("WHERE", where).replace("ANSWER", answer)
    return tools + template.replace("OPEN", opening).replace("CLOSE", closing)


TOOLS = '{%- if tools %}{{- "[AVAILABLE_TOOLS]" }}{%- endif %}\n'
TEKKEN_TOOLS = '{%- if tools %}{{- "[AVAILABLE_TOOLS]" + "[/AVAILABLE_TOOLS]" + "[INST]" }}{%- endif %}\n'
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}")
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
    "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}")
GEMMA = r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {{- message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""

# name: (template, what the model itself writes before its answer, can the template do system messages?)
TEMPLATES = {
    "chatml": (CHATML, "", True),
    "qwen2": (QWEN2, "", True),
    "qwen2.5": (QWEN25, "", True),
    "qwen3": (QWEN3, "", True),
    "llama2": (LLAMA2, " ", True),
    "llama3": (LLAMA3, "", True),
    "llama3.1": (LLAMA31, "", True),
    "mistral": (MISTRAL, "", False),
    "mistral v0.1": (MISTRAL.replace("eos_token}}", "eos_token + ' ' }}"), "", False),
    "mistral v1": (numbered("loop.first", " [INST] ", " [/INST]", " "), " ", True),
    "mistral v3": (numbered("loop.first", "[INST] ", "[/INST]", " ", TOOLS), " ", True),
    "mistral tekken": (numbered("loop.first", "[INST]", "[/INST]", "", TEKKEN_TOOLS), "", True),
    "zephyr": (ZEPHYR, "", True),
    "phi3": (PHI3, "", True),
    "gemma": (GEMMA, "", True),
}
SYSTEMS = [None, "Be brief.", "  Two\nlines. "]
CONVERSATIONS = [["Hi"], ["Hi", "Hello!", "How are\nyou?"],
                 [" spaces ", "a", "\tb\n", "c", "d {eos} <|x|> \u00e9"]]


@pytest.fixture(scope="session")
def tool(tmp_path_factory):
    return build_tool("tool_chat", tmp_path_factory.mktemp("tool"))


def render_with_jinja(template, system, messages, bos, eos):
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    chat = [] if system is None else [{"role": "system", "content": system}]
    roles = itertools.cycle(["user", "assistant"])
    chat += [{"role": role, "content": m} for role, m in zip(roles, messages)]
    text = environment.from_string(template).render(messages=chat, add_generation_prompt=True, bos_token=bos,
                                                    eos_token=eos)
    return text.removeprefix(bos)


def render_turns(tool, model, system, messages):
    command = [tool, model] + ([] if system is None else [system])
    done = subprocess.run(command, input=pack(messages), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_add_up_to_the_template(tool, tmp_path, name):
    template, before_answer, has_system = TEMPLATES[name]
    model = write_vocabulary(tmp_path / "chat.gguf", tokens=["<unk>", "<BOS>", "<EOS>"], bos_token_id=1,
                             eos_token_id=2, template=template)
    for system in SYSTEMS if has_system else [None]:
        for messages in CONVERSATIONS:
            if name == "llama2" and system and messages[0] != messages[0].lstrip():
                continue  # strips the joined text: leading space survives behind the system message
            answered = [m if i % 2 == 0 else before_answer + m for i, m in enumerate(messages)]
            expected = render_with_jinja(template, system, messages, "<BOS>", "<EOS>")
            assert render_turns(tool, model, system, answered) == expected


@pytest.mark.skipif(not SMOLLM2.exists(), reason="models/smollm2.gguf is missing: make model")
def test_smollm2(tool):
    template = gguf.GGUFReader(SMOLLM2).fields["tokenizer.chat_template"].contents()
    for system, messages in itertools.product(SYSTEMS, CONVERSATIONS):
        expected = render_with_jinja(template, system, messages, bos="", eos="<|im_end|>")
        assert render_turns(tool, SMOLLM2, system, messages) == expected


@pytest.mark.parametrize("template", [None, "", "{{ messages[0]['content'] }}", "### Instruction:\n",
                                      "[SYSTEM_PROMPT][INST]"])
def test_unknown_format_is_an_error_that_names_raw(tool, tmp_path, template):
    model = write_vocabulary(tmp_path / "chat.gguf", template=template)
    done = subprocess.run([tool, model], input=pack(["Hi"]), capture_output=True)
    assert done.returncode == 1 and done.stdout == b""
    message = done.stderr.decode()
    assert "tokenizer.chat_template" in message and "--raw" in message and message.count("\n") == 1
