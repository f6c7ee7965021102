"The command line: thin functions that call the library and turn its errors into one line."
import contextlib, difflib, json, os, sys, warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Optional

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer

HELP = dict(help_option_names=["-h", "--help"])
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, context_settings=HELP,
                  help="Build a speech LLM, hear it, measure it. Start with: speechllm tour. Every command takes --debug, which shows where an error arose.")
data_app = typer.Typer(no_args_is_help=True, help="List, build and fetch corpora. Example: speechllm data list")
bench_app = typer.Typer(no_args_is_help=True, help="Studies on equal terms, and speed against peers. Example: speechllm bench fusion --quick")
app.add_typer(data_app, name="data"); app.add_typer(bench_app, name="bench")
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Rows = Annotated[Optional[list[str]], typer.Option("--row", help="only this row; may be given several times")]
Seeds = Annotated[Optional[list[int]], typer.Option("--seed", help="only this seed, likewise; several processes may share one --out")]
Longest = Annotated[int, typer.Option(help="longest reply, in tokens; a longer one is cut, with a warning (0: 64, and 400 with --speak)", min=0)]

def _print_version(wanted):
    if wanted:
        from speechllm_course import __version__
        print(__version__); raise typer.Exit

@app.callback()
def options(version: Annotated[bool, typer.Option("--version", help="print the version and stop", callback=_print_version, is_eager=True)] = False): pass

class Failed(Exception):
    "A command did not succeed; its message has been printed."

def say(text): print(text, file=sys.stderr)

def pick_device(name):
    "auto, cpu or cuda → a device that exists."
    import torch
    if name not in ("auto", "cpu", "cuda"): raise typer.BadParameter(f"--device {name}: choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available(): raise ValueError("--device cuda: no GPU here; use --device cpu")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"

def choose(option, value, choices):
    "Refuse a value that is not among the choices: bad usage, exit 2."
    near = difflib.get_close_matches(str(value), choices, 1)
    if value not in choices: raise typer.BadParameter(f"{option} {value}: {f'did you mean {near[0]}? ' if near else ''}choose from {', '.join(choices)}")

@app.command()
def doctor():
    """Check versions, devices, data and disk. Example: speechllm doctor"""
    from speechllm_course.commands.doctor import check_all
    if not check_all(): raise Failed

@app.command()
def tour(preset: Annotated[str, typer.Option(help="which size; tiny runs on a laptop")] = "tiny", quick: Annotated[bool, typer.Option(help="a few seconds a stage, to see that everything works")] = False,
         device: Device = "auto", out: Annotated[Path, typer.Option(help="folder for the report, results and the trained model")] = Path("runs/tour"), seed: Annotated[int, typer.Option(help="of everything random")] = 0):
    """Train the bridge between a speech encoder and a language model, hear it, and read a report. Example: speechllm tour --quick"""
    choose("--preset", preset, ["tiny"])
    from speechllm_course.commands.tour import run
    run(quick=quick, device=pick_device(device), out=out, seed=seed)

@app.command()
def build(artifacts: Annotated[Optional[list[str]], typer.Argument(help="corpus, lm, encoder, tiny, judge, units, vocoder, tiny-units, tiny-orders (default: all)")] = None,
          preset: Annotated[str, typer.Option(help="which size; tiny is the one that ships")] = "tiny",
          out: Annotated[Optional[Path], typer.Option(help="folder to write to (default: the package's data folder)")] = None,
          quick: Annotated[bool, typer.Option(help="a few steps each, to see that the recipes run")] = False):
    """Rebuild what is shipped, from scratch. Example: speechllm build lm --out runs/data"""
    choose("--preset", preset, ["tiny"])
    from speechllm_course.commands.build import ARTIFACTS, run
    for name in artifacts or []: choose("artifact", name, ARTIFACTS)
    run(artifacts or [], out, quick)

@app.command()
def train(config: Annotated[Path, typer.Argument(help="a YAML file with a stage, or the name of a shipped one, such as pretrain-bestrq.yaml")], resume: Annotated[bool, typer.Option(help="continue after the last checkpoint")] = False,
          dry_run: Annotated[bool, typer.Option(help="check config and data, estimate memory and time, train nothing")] = False, device: Device = "auto"):
    """Run one training stage from a config file. Example: speechllm train connector.yaml --dry-run"""
    from speechllm_course.commands.stages import run_file
    run_file(config, resume=resume, dry_run=dry_run, device=device if device == "auto" else pick_device(device))      # auto: the file decides

@app.command()
def transcribe(files: Annotated[list[Path], typer.Argument(help="recordings of up to 60 s")], model: Annotated[str, typer.Option(help="a shipped model or a folder")] = "tiny",
               strict: Annotated[bool, typer.Option(help="stop at the first recording that cannot be used")] = False, max_new_tokens: Longest = 0, device: Device = "auto"):
    """Write down what recordings say. Example: speechllm transcribe one.wav two.flac"""
    _listen(files, "transcribe", model, strict, pick_device(device), max_new_tokens)

@app.command()
def ask(file: Annotated[Path, typer.Argument(help="a recording of up to 60 s")], prompt: Annotated[str, typer.Option(help="what to do with it")] = "answer",
        model: Annotated[Optional[str], typer.Option(help="a shipped model or a folder (default: tiny; tiny-units with --speak)")] = None,
        speak: Annotated[Optional[Path], typer.Option(help="write a spoken answer to this WAV file")] = None,
        voice: Annotated[Optional[Path], typer.Option(help="a recording whose voice the answer copies (with --speak)")] = None, max_new_tokens: Longest = 0, device: Device = "auto"):
    """Answer a spoken question or request. Example: speechllm ask question.wav --speak answer.wav"""
    if voice and not speak: raise typer.BadParameter("--voice needs --speak: only a spoken answer has a voice")
    if speak: return _speak(file, prompt, model or "tiny-units", speak, voice, pick_device(device), max_new_tokens)
    _listen([file], prompt, model or "tiny", True, pick_device(device), max_new_tokens, names=False)

def _speak(file, prompt, model, out, voice, device, longest):
    "Answer aloud: the text is printed, the speech written."
    from speechllm_course.audio import check_target, load_audio, save_audio
    clip, voice = load_audio(file), voice and load_audio(voice)
    check_target(out)
    from speechllm_course.commands.spoken import load_any
    from speechllm_course.sequences import ALOUD
    from speechllm_course.vocoder import voice_vector
    speech_llm = load_any(model, device, vocoder=True)
    with _doubts(file, clip): text, waveform = speech_llm.speech(clip, ALOUD[0] if prompt == "answer" else prompt, voice=None if voice is None else voice_vector(voice), max_new_tokens=longest or 400)
    print(text)
    if not len(waveform): raise ValueError(f"{file}: the reply has no speech; ask with the prompt {ALOUD[0]!r}")
    save_audio(out, waveform)

def _listen(files, prompt, model, strict, device, longest, names=True):
    "Shared by transcribe and ask: one recording after the other; the good ones are answered, the bad ones named."
    from speechllm_course.audio import AudioError, load_audio
    speech_llm, bad = None, 0
    for file in files:
        try: waveform = load_audio(file)
        except AudioError as e:
            if strict: raise
            say(f"error: {e}"); bad += 1
            continue
        if speech_llm is None:
            from speechllm_course.commands.spoken import is_unit_model, load_any
            from speechllm_course.sequences import ALOUD
            speech_llm = load_any(model, device)
            if prompt == "answer" and is_unit_model(model): prompt = ALOUD[0]      # it writes down what it heard, then the answer: far more often right than at once
        try:
            with _doubts(file, waveform): text = speech_llm.answer(waveform, prompt, longest or 64)
        except ValueError as e:                                      # too long for the language model
            if strict: raise
            say(f"error: {file}: {e}"); bad += 1
            continue
        print(f"{file}\t{text}" if names and len(files) > 1 else text, flush=True)
    if bad: raise Failed

TRAINED = 15    # seconds: longer than any clip that the shipped models were trained on

@contextlib.contextmanager
def _doubts(file, waveform):
    "Say what makes an answer doubtful: clipped samples, a long recording, a reply that was cut."
    from speechllm_course.audio import SAMPLE_RATE, clipped_share
    from speechllm_course.lm import CutReply
    from speechllm_course.processor import CutClip
    if (share := clipped_share(waveform)) > .01: say(f"warning: {file}: {share:.0%} of the samples are clipped; words may be wrong")
    if (seconds := len(waveform) / SAMPLE_RATE) > TRAINED: say(f"warning: {file}: {seconds:.0f} s are longer than anything that the shipped models were trained on; words may be missing, so cut it into sentences")
    with warnings.catch_warnings(record=True) as caught:
        for category in (CutReply, CutClip): warnings.simplefilter("always", category)
        yield
    for warning in caught:
        if issubclass(warning.category, (CutReply, CutClip)): say(f"warning: {file}: {warning.message}")

@app.command(name="eval")
def eval_(data: Annotated[str, typer.Option(help="world:SPLIT, requests or requests:CONDITION (refusals in held-out wordings), fsdd, fsdd:SPEAKER, barista, barista:course (those that tiny-orders learned from) or barista:new (the others), or a folder with metadata.csv")], root: Annotated[Optional[Path], typer.Option(help="folder that holds fsdd/, barista/")] = None,
          task: Annotated[Optional[str], typer.Option(help="asr, qa, command, order, digit, manner, refuse, answer, spoken_qa or resynthesis (default: the corpus's own)")] = None,
          part: Annotated[str, typer.Option(help="all, encoder or lm")] = "all", input: Annotated[str, typer.Option(help="audio, or text: the transcript instead of the clip")] = "audio",
          model: Annotated[Optional[str], typer.Option(help="a shipped model or a folder (default: tiny; tiny-units where it has to speak, tiny-orders for barista)")] = None, committed: Annotated[bool, typer.Option(help="only the clips that travel with the package, even where more can be synthesised")] = False,
          world_seed: Annotated[int, typer.Option(help="of a full split or of requests; another seed is a regenerated world")] = 0, limit: Annotated[int, typer.Option(help="clips at most (0: all)", min=0)] = 0,
          diagnose: Annotated[bool, typer.Option(help="seven examinations besides: does it listen, follow other wordings, keep its text skill; are batches, prompts and spans sound; and when did it begin to listen, if its training was watched (data: watch)")] = False, diagnose_clips: Annotated[int, typer.Option(help="clips that the examinations use; of written questions, which cost little, eight times as many", min=2)] = 60, strict: Annotated[bool, typer.Option(help="fail on a broken clip")] = False,
          before: Annotated[Optional[str], typer.Option(help="an earlier model that --diagnose compares text skill and alignment with (default: the parts the model was built of)")] = None,
          max_new_tokens: Annotated[int, typer.Option(help="longest reply, in tokens; longer ones are cut, counted and scored as they are", min=1)] = 64,
          as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False, out: Annotated[Optional[Path], typer.Option(help="write the JSON here too")] = None, device: Device = "auto"):
    """Measure a model on a corpus. Example: speechllm eval --data world:test_voices --task qa --json"""
    from speechllm_course.commands.evaluation import SPOKEN, run, show
    from speechllm_course.evaluate import TASKS
    choose("--part", part, ("all", "encoder", "lm")); choose("--input", input, ("audio", "text"))
    if task: choose("--task", task, TASKS + SPOKEN)
    if out and out.is_dir(): raise typer.BadParameter(f"--out {out} is a folder; name a file in it, such as {out / 'result.json'}")
    result = run(data, root, task, part, input, model, committed, world_seed, limit, diagnose, strict, pick_device(device), say, diagnose_clips, max_new_tokens, before)
    if out:
        from speechllm_course.commands.report import write_text
        write_text(out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if as_json else show(result))

@bench_app.command()
def speed(out: Annotated[Optional[Path], typer.Option(help="write the JSON here too")] = None):
    """Performance against what you would use instead. Example: speechllm bench speed --out speed.json"""
    checkout = Path(__file__).parent.parent / "tests" / "benchmarks"
    try:
        import faiss, librosa  # noqa: F401  (the bench extra)
        if not checkout.is_dir(): raise ImportError
    except ImportError: raise typer.BadParameter("bench speed needs a checkout of the repository and: pip install '.[bench]'") from None
    sys.path.insert(0, str(checkout))
    from speed import run
    run(out)

@bench_app.command()
def fusion(quick: Annotated[bool, typer.Option(help="one seed, few clips, a few steps: every row runs, no figure is evidence")] = False,
           transcripts: Annotated[bool, typer.Option(help="connectors only, trained on transcripts alone for about two minutes each")] = False,
           loudness: Annotated[bool, typer.Option(help="one connector, its span as loud as words, louder, quieter: does it matter?")] = False,
           out: Annotated[Optional[Path], typer.Option(help="results, as JSON; a second call goes on where the first one stopped (default: runs/fusion.json)")] = None,
           row: Rows = None, seed: Seeds = None):
    """Every post-process and every connector on equal terms. Example: speechllm bench fusion --quick"""
    from speechllm_course.commands.fusion_study import LOUDNESS_ROWS, ROWS, run
    for name in row or []: choose("--row", name, LOUDNESS_ROWS if loudness else ROWS)
    kinds = [kind for kind, wanted in (("quick", quick), ("transcripts", transcripts), ("loudness", loudness)) if wanted]
    if len(kinds) > 1: raise typer.BadParameter(f"--{kinds[0]} and --{kinds[1]} are two studies; choose one")
    run(out, kinds[0] if kinds else "", row, seed)

@bench_app.command()
def claim(quick: Annotated[bool, typer.Option(help="one seed, few clips, a few steps: every row runs, no figure is evidence")] = False,
          out: Annotated[Optional[Path], typer.Option(help="results, as JSON; a second call goes on where the first one stopped (default: runs/claim.json)")] = None,
          row: Rows = None, seed: Seeds = None):
    """Conversion against a merged vocabulary: what of speech is left. Example: speechllm bench claim --quick"""
    from speechllm_course.commands.claim_study import ROWS, run
    for name in row or []: choose("--row", name, ROWS)
    run(out, quick, row, seed)

@bench_app.command()
def pretrain(quick: Annotated[bool, typer.Option(help="one seed, few clips, a few steps: every row runs, no figure is evidence")] = False,
             out: Annotated[Optional[Path], typer.Option(help="results, as JSON; a second call goes on where the first one stopped (default: runs/pretrain.json)")] = None,
             row: Rows = None,
             seed: Seeds = None, device: Device = "auto"):
    """What pretraining saves in labels: every objective with 1, 10 and 100 % of them. Example: speechllm bench pretrain --quick"""
    from speechllm_course.commands.pretrain_study import ROWS, run
    for name in row or []: choose("--row", name, ROWS)
    run(out, quick, row, seed, pick_device(device))

@bench_app.command()
def sft(quick: Annotated[bool, typer.Option(help="one seed, few clips, a few steps: every row runs, no figure is evidence")] = False,
        out: Annotated[Optional[Path], typer.Option(help="results, as JSON; a second call goes on where the first one stopped (default: runs/sft.json)")] = None,
        row: Rows = None, seed: Seeds = None):
    """The freeze ladder: what was thawed, with which loss, what it learned, forgot and cost. Example: speechllm bench sft --quick"""
    from speechllm_course.commands.sft_study import ROWS, run
    for name in row or []: choose("--row", name, ROWS)
    run(out, quick, row, seed)

@bench_app.command()
def rl(quick: Annotated[bool, typer.Option(help="one seed, few clips, two steps: every row runs, no figure is evidence")] = False,
       out: Annotated[Optional[Path], typer.Option(help="results, as JSON; a second call goes on where the first one stopped, and several may share one (default: runs/rl-PLAN.json)")] = None,
       plan: Annotated[str, typer.Option(help="transcripts: word errors among other voices, behind a start that fine-tuning has worn out; orders: orders in coloured noise; longer: transcripts again, for longer, on more test clips; labels: orders of whose labels three in ten are wrong; fields: orders whose labels have their fields in any order")] = "transcripts",
       row: Rows = None, seed: Seeds = None):
    """Speech in noise: reinforcement learning against more fine-tuning in the same seconds. Example: speechllm bench rl --quick"""
    from speechllm_course.commands.rl_study import PLANS, run
    choose("--plan", plan, PLANS)
    for name in row or []: choose("--row", name, PLANS[plan].rates)
    run(out, quick, plan, row, seed)

@bench_app.command()
def safety(quick: Annotated[bool, typer.Option(help="one seed, few clips, two steps: every row runs, no figure is evidence")] = False,
           out: Annotated[Optional[Path], typer.Option(help="results, as JSON; a second call goes on where the first one stopped (default: runs/safety.json)")] = None):
    """Refusals and over-refusals in held-out wordings and under spoken tricks. Example: speechllm bench safety --quick"""
    from speechllm_course.commands.safety_study import run
    run(out, quick)

@bench_app.command()
def orders(quick: Annotated[bool, typer.Option(help="two folds of few recordings, a few steps: everything runs, no figure is evidence")] = False,
           out: Annotated[Optional[Path], typer.Option(help="results, as JSON; a second call goes on where the first one stopped (default: runs/orders.json)")] = None,
           root: Annotated[Optional[Path], typer.Option(help="folder that holds barista/ (default: SPEECHLLM_DATA, else the cache)")] = None,
           fold: Annotated[Optional[list[int]], typer.Option(help="only this fold, 0 to 4; may be given several times, and several processes may share one --out")] = None, device: Device = "auto"):
    """Real people's coffee orders in five folds, as recorded and with noise. Example: speechllm bench orders --quick"""
    from speechllm_course.commands.orders_study import run
    run(out, quick, root, device=pick_device(device), folds=fold)

@bench_app.command()
def towards(quick: Annotated[bool, typer.Option(help="one seed, few clips, a few steps: every row runs, no figure is evidence")] = False,
            out: Annotated[Optional[Path], typer.Option(help="results, as JSON; a second call goes on where the first one stopped (default: runs/towards.json)")] = None,
            row: Rows = None, seed: Seeds = None):
    """Is a connector trained faster behind an encoder that was trained towards the language model? Example: speechllm bench towards --quick"""
    from speechllm_course.commands.towards_study import ROWS, run
    for name in row or []: choose("--row", name, ROWS)
    run(out, quick, row, seed)

@bench_app.command()
def whole(quick: Annotated[bool, typer.Option(help="one seed, few clips, a few steps: every row runs, no figure is evidence")] = False,
          out: Annotated[Optional[Path], typer.Option(help="results, as JSON; a second call goes on where the first one stopped (default: runs/whole.json)")] = None,
          row: Rows = None, seed: Seeds = None):
    """Whole-model pretraining on mixed sequences, with spans and with units. Example: speechllm bench whole --quick"""
    from speechllm_course.commands.whole_study import ROWS, run
    for name in row or []: choose("--row", name, ROWS)
    run(out, quick, row, seed)

@data_app.command("list")
def data_list():
    """Which corpora are here, and how to get the others. Example: speechllm data list"""
    from speechllm_course.commands.evaluation import list_data
    list_data()

@data_app.command("build")
def data_build(split: Annotated[str, typer.Argument(help="train, valid, test_voices, test_text, test_both or test_synthesiser")] = "test_voices", seed: Annotated[int, typer.Option(help="another seed, another corpus of the same world")] = 0,
               n: Annotated[int, typer.Option(help="clips", min=1)] = 1000):
    """Synthesise a full split of the world into the cache. Example: speechllm data build test_voices"""
    from speechllm_course.corpus import cache_dir, load_world
    print(f"{len(load_world(split, True, seed, n))} clips in {cache_dir() / 'world'}")

@data_app.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(help="fsdd or barista")], to: Annotated[Optional[Path], typer.Option(help="folder (default: the cache)")] = None):
    """Download a corpus of real recordings. Example: speechllm data fetch fsdd"""
    from speechllm_course.recordings import SOURCES, fetch
    choose("name", name, SOURCES)
    print(fetch(name, to))

@app.command()
def notebooks(dest: Annotated[Path, typer.Argument(help="a new folder")]):
    """Copy the course out, to work in it. Example: speechllm notebooks my-course"""
    from speechllm_course.commands.doctor import copy_notebooks
    first = "" if find_spec("jupyterlab") and find_spec("fastcore") else "pip install jupyterlab fastcore, then "
    print(f"{copy_notebooks(dest)} notebooks in {dest}; open them with: {first}jupyter lab {dest}")

@app.command()
def check(lesson: Annotated[str, typer.Argument(help="a lesson's number, such as 01a")], notebook: Annotated[Optional[Path], typer.Option(help="your exercise notebook (default: exercises/LESSON_*.ipynb here, below my-course or below nbs)")] = None):
    """Check your solutions of a lesson's exercises. Example: speechllm check 01a"""
    from speechllm_course.checks import run
    if not run(lesson, notebook): raise Failed

def main():
    "Entry point: exit 0 when done, 1 when failed, 2 for bad usage; one line on stderr unless --debug."
    debug = "--debug" in sys.argv
    if debug: sys.argv.remove("--debug")
    try:
        if not debug: _silence()
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except Failed: sys.exit(1)
    except Exception as e:
        if debug: raise
        usage = hasattr(e, "format_message")                     # click's own errors: a wrong option, a missing argument
        if type(e).__name__ == "NoArgsIsHelpError": print(e.format_message())
        else: say(f"error: {e.format_message() if usage else _one_line(e)}")
        sys.exit(2 if usage else getattr(e, "exit_code", 1))

def _one_line(e):
    known = isinstance(e, (ValueError, OSError, ImportError, RuntimeError)) and str(e)
    return " ".join(str(e).split()) if known else f"{type(e).__name__}: {' '.join(str(e).split())} (run again with --debug to see where)"

def _silence():
    "Other libraries' warnings are noise to somebody who typed a command."
    import logging
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error"); os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"); os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if len(sys.argv) > 1 and not {"-h", "--help"} & {*sys.argv}:             # help should not wait for transformers
        try: from transformers.utils import logging as transformers_logging
        except Exception: return                                   # doctor explains what is broken
        transformers_logging.disable_progress_bar(); transformers_logging.set_verbosity_error()
