"""Hugging Face Trainer, pipelines, accelerate and peft on the virtual GPU, on data made in memory."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nightly_checks import Checks, compare, move, on_gpu
from nightly_models import FAMILIES, WORDS

CHECKS = Checks("transformers", "accelerate")
MIXED = ("fp16", "bf16", "bf16_full_eval", "tf32", "torch_compile")  # options that a run on the CPU goes without


class Sentences(torch.utils.data.Dataset):
    """Sentences of 9 words; the label says whether the first word is in the upper half of the vocabulary."""

    def __init__(self, count: int, seed: int):
        self.words = torch.randint(3, WORDS, (count, 9), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, place: int) -> dict[str, Any]:
        words = self.words[place]
        return {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": int(words[0] > WORDS // 2)}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def make_trainer(folder: str, *, stop_after: float = float("inf"), **options: Any) -> tuple[Any, list[float]]:
    """A Trainer for BERT on 64 sentences: 4 epochs of 8 steps, evaluated and saved after each; and what will be the
    losses that it logs. stop_after: epochs after which it gives up."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    losses: list[float] = []

    class Listener(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.epoch >= stop_after

    settings: dict[str, Any] = {
        "output_dir": folder, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 16,
        "num_train_epochs": 4, "learning_rate": 3e-3, "logging_steps": 4, "eval_strategy": "epoch",
        "save_strategy": "epoch", "save_total_limit": 2, "report_to": [], "disable_tqdm": True, "seed": 5,
        "max_grad_norm": 1.0, **options,
    }  # fmt: skip
    trainer = Trainer(
        model=FAMILIES["bert"].make("sdpa"), args=TrainingArguments(**settings), train_dataset=Sentences(64, 1),
        eval_dataset=Sentences(32, 2), compute_metrics=accuracy, callbacks=[Listener()],
    )  # fmt: skip
    return trainer, losses


@contextlib.contextmanager
def quietly() -> Any:
    """Without what the Trainer prints at every log."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def train_with(tolerance: float, **options: Any) -> str:
    """The Trainer's losses on the GPU against those of a run in float32 on the CPU."""
    with tempfile.TemporaryDirectory() as folder, quietly():
        here, expected = make_trainer(
            f"{folder}/cpu", use_cpu=True, **{name: value for name, value in options.items() if name not in MIXED}
        )
        here.train()
        there, found = make_trainer(f"{folder}/gpu", **options)
        there.train()
        assert there.args.device.type == "cuda" and on_gpu(there.model)
        worst = compare([torch.tensor(found)], [torch.tensor(expected)], tolerance, "losses")
        assert found[-1] < 0.95 * found[0], found
        result = there.evaluate()
        answers = there.predict(Sentences(32, 2))
        assert answers.predictions.shape == (32, 2)
        assert result["eval_accuracy"] == accuracy(answers)["accuracy"]
        checkpoints = sorted(path.name for path in Path(folder, "gpu").iterdir())
        assert len(checkpoints) == 2, checkpoints
    return f"{worst:.0e}, loss {found[0]:.2f} to {found[-1]:.2f}"


CHECKS.add("Trainer float32", light=True)(partial(train_with, 1e-3))
CHECKS.add("Trainer fp16", light=True)(partial(train_with, 0.05, fp16=True))
CHECKS.add("Trainer bf16", light=True)(partial(train_with, 0.05, bf16=True))
CHECKS.add("Trainer full bf16 evaluation")(partial(train_with, 0.05, bf16=True, bf16_full_eval=True))
CHECKS.add("Trainer fused AdamW")(partial(train_with, 1e-3, optim="adamw_torch_fused"))
CHECKS.add("Trainer Adafactor, cosine schedule")(
    partial(train_with, 1e-3, optim="adafactor", lr_scheduler_type="cosine")
)
CHECKS.add("Trainer gradient accumulation")(partial(train_with, 1e-3, gradient_accumulation_steps=2))
CHECKS.add("Trainer checkpointed activations")(partial(train_with, 1e-3, gradient_checkpointing=True))
CHECKS.add("Trainer TF32")(partial(train_with, 1e-2, tf32=True))
CHECKS.add("Trainer loader processes")(
    partial(train_with, 1e-3, dataloader_num_workers=2, dataloader_pin_memory=True, num_train_epochs=2)
)


@CHECKS.add("Trainer resume", light=True)
def resume() -> str:
    """Two epochs, and two more from the checkpoint, end where four epochs in one go do."""
    with tempfile.TemporaryDirectory() as folder, quietly():
        whole, _ = make_trainer(f"{folder}/whole", bf16=True)
        whole.train()
        first, _ = make_trainer(f"{folder}/parts", bf16=True, stop_after=2)
        first.train()
        second, _ = make_trainer(f"{folder}/parts", bf16=True)
        second.train(resume_from_checkpoint=True)
        assert second.state.global_step == whole.state.global_step == 32
        worst = compare(second.model.parameters(), whole.model.parameters(), 1e-4, "parameters")
    return f"{worst:.0e}"


@CHECKS.add("Trainer memory metrics")
def memory_metrics() -> str:
    with tempfile.TemporaryDirectory() as folder, quietly():
        trainer, _ = make_trainer(folder, skip_memory_metrics=False, num_train_epochs=1)
        metrics = trainer.train().metrics
    assert metrics["train_mem_gpu_peaked_delta"] > 0, metrics
    return f"peak {metrics['train_mem_gpu_peaked_delta']:,} bytes"


@CHECKS.add("Trainer torch_compile")
def compiled() -> str:
    return train_with(1e-3, torch_compile=True, num_train_epochs=2, per_device_eval_batch_size=8)


# ---------------------------------------------------------------- pipelines
def word_tokenizer() -> Any:
    """A tokenizer of whole words, made here."""
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{number}": number for number in range(3, WORDS)}}
    inner = Tokenizer(WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>",
        model_max_length=64, padding_side="left",
    )  # fmt: skip


@CHECKS.add("pipeline classification", light=True)
def classification() -> str:
    import transformers

    texts = ["w5 w6 w7", "w90 w8", "w3"]
    tokenizer = word_tokenizer()
    scores = []
    for device in (-1, 0, "cuda:0"):
        model = FAMILIES["bert"].make("sdpa")
        pipe = transformers.pipeline("text-classification", model, tokenizer=tokenizer, device=device)
        assert pipe.device.type == ("cpu" if device == -1 else "cuda")
        scores.append(torch.tensor([found["score"] for found in pipe(texts, batch_size=2)]))
    return f"{compare(scores[1:], [scores[0]] * 2, 1e-4, 'scores'):.0e}"


@CHECKS.add("pipeline generation", light=True)
def generation() -> str:
    import transformers

    texts = []
    for device in (-1, 0):
        model = FAMILIES["gpt2"].make("sdpa")
        pipe = transformers.pipeline("text-generation", model, tokenizer=word_tokenizer(), device=device)
        texts.append(pipe(["w5 w6", "w7 w8 w9"], max_new_tokens=6, do_sample=False, batch_size=2))
    assert texts[0] == texts[1], texts
    return texts[1][0][0]["generated_text"]


@CHECKS.add("pipeline half precision")
def half_pipeline() -> str:
    import transformers

    pipe = transformers.pipeline(
        "text-generation", FAMILIES["llama"].make("sdpa"), tokenizer=word_tokenizer(), device=0, dtype=torch.bfloat16
    )
    found = pipe("w5 w6", max_new_tokens=6, do_sample=True, num_beams=2)
    return found[0]["generated_text"]


# ---------------------------------------------------------------- accelerate
def accelerated(tolerance: float, **options: Any) -> str:
    """A loop with Accelerator against a plain one on the CPU: eight batches, summed gradients where asked for."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    data = Sentences(32, 3)
    batches = [torch.utils.data.default_collate([data[8 * n + i] for i in range(8)]) for n in range(4)] * 2
    parts = options.get("gradient_accumulation_steps", 1)

    plain = FAMILIES["bert"].make("sdpa").train()
    optimiser = torch.optim.AdamW(plain.parameters(), 1e-3)
    expected = []
    for number, batch in enumerate(batches, 1):
        loss = plain(**batch).loss
        (loss / parts).backward()
        expected.append(loss.item())
        if number % parts == 0:
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()

    accelerator = Accelerator(**options)
    assert accelerator.device.type == "cuda"
    model = FAMILIES["bert"].make("sdpa").train()
    loader = torch.utils.data.DataLoader(data, 8)
    model, optimiser, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 1e-3), loader)
    found = []
    for _ in range(2):
        for batch in loader:
            assert batch["input_ids"].is_cuda
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                optimiser.zero_grad()
            found.append(accelerator.gather(loss.detach()).item())
    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        accelerator.load_state(folder)
        compare(model.parameters(), before, 0.0, "restored parameters")
    assert on_gpu(accelerator.unwrap_model(model))
    return f"{compare([torch.tensor(found)], [torch.tensor(expected)], tolerance, 'losses'):.0e}"


CHECKS.add("Accelerator float32", light=True)(partial(accelerated, 1e-4))
CHECKS.add("Accelerator fp16", light=True)(partial(accelerated, 0.02, mixed_precision="fp16"))
CHECKS.add("Accelerator bf16")(partial(accelerated, 0.02, mixed_precision="bf16"))
CHECKS.add("Accelerator accumulation", light=True)(partial(accelerated, 1e-4, gradient_accumulation_steps=2))


@CHECKS.add("accelerate big models")
def dispatched() -> str:
    """A model that is spread over the GPU and the host."""
    from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights

    plain = FAMILIES["llama"].make("sdpa")
    with init_empty_weights():
        empty = FAMILIES["llama"].make("sdpa")
    assert all(parameter.is_meta for parameter in empty.parameters())
    places = infer_auto_device_map(empty, {0: 95_000, "cpu": "1GB"}, no_split_module_classes=["LlamaDecoderLayer"])
    assert set(places.values()) == {0, "cpu"}, places
    inputs = FAMILIES["llama"].inputs()
    with torch.no_grad():
        expected = plain(**inputs).logits
        spread = dispatch_model(plain, places)
        found = spread(**move(inputs, "cuda")).logits
    return f"{compare([found], [expected], 1e-4, 'logits'):.0e}"


# ---------------------------------------------------------------- peft
@CHECKS.add("peft LoRA", "peft")
def lora() -> str:
    import copy

    from nightly_checks import train
    from peft import LoraConfig, PeftModel, get_peft_model

    here = get_peft_model(
        FAMILIES["llama"].make("sdpa"), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    there = copy.deepcopy(here).cuda()
    inputs = FAMILIES["llama"].inputs()
    inputs_there = move(inputs, "cuda")
    expected = train(here, lambda: here(**inputs).loss)
    found = train(there, lambda: there(**inputs_there).loss)
    compare([torch.tensor(found)], [torch.tensor(expected)], 1e-4, "losses")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        there.save_pretrained(folder)
        again = PeftModel.from_pretrained(FAMILIES["llama"].make("sdpa").cuda(), folder)
        assert on_gpu(again)
        return f"{compare([again(**inputs_there).logits], [there(**inputs_there).logits], 1e-5, 'logits'):.0e}"


logging.getLogger("accelerate").setLevel(logging.ERROR)
