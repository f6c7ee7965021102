PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: course test test-release lab results study clean

course: $(VENV)/ready           ## install everything and take the tour
	$(BIN)/speechllm tour

test: $(VENV)/ready             ## all tests, at most 15 minutes on 2 cores: two processes with a core each, the notebooks one after another in one of them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder

test-release: $(VENV)/ready     ## everything, slow tests included
	$(BIN)/python -m pytest tests --release

EVAL = $(BIN)/speechllm eval --out data/results
results: $(VENV)/ready          ## measure what is shipped and renew the README's table (needs the real recordings)
	for s in test_voices test_text test_both test_synthesiser; do $(EVAL)/encoder-$$s.json --data world:$$s --part encoder || exit 1; done
	$(EVAL)/lm-test_text.json --data world:test_text --part lm --input text
	for s in test_voices test_both test_synthesiser; do $(EVAL)/tiny-asr-$$s.json --data world:$$s || exit 1; done
	$(EVAL)/tiny-qa-test_voices.json --data world:test_voices --task qa --diagnose --diagnose-clips 500
	$(EVAL)/tiny-diagnosis-test_voices.json --data world:test_voices --diagnose --diagnose-clips 1000
	$(EVAL)/tiny-manner-test_voices.json --data world:test_voices --task manner
	$(EVAL)/tiny-command-test_voices.json --data world:test_voices --task command
	$(EVAL)/tiny-refuse-test_both.json --data world:test_both --task refuse
	$(EVAL)/tiny-requests.json --data requests
	for c in fast whispered foreign persuaded; do $(EVAL)/tiny-requests-$$c.json --data requests:$$c || exit 1; done
	$(EVAL)/lm-qa-test_voices.json --data world:test_voices --task qa --input text
	$(EVAL)/tiny-fsdd-nicolas.json --data fsdd:nicolas
	$(EVAL)/tiny-barista.json --data barista:course --model tiny
	$(EVAL)/encoder-barista.json --data barista:course --part encoder
	$(EVAL)/encoder-fsdd-nicolas.json --data fsdd:nicolas --part encoder
	$(EVAL)/tiny-units-asr-test_voices.json --data world:test_voices --model tiny-units
	$(EVAL)/tiny-units-qa-test_voices.json --data world:test_voices --task qa --model tiny-units
	$(EVAL)/tiny-units-spoken_qa-test_voices.json --data world:test_voices --task spoken_qa
	$(EVAL)/tiny-units-lm-test_text.json --data world:test_text --part lm --input text --model tiny-units
	$(EVAL)/resynthesis-test_voices.json --data world:test_voices --task resynthesis
	$(BIN)/python -m speechllm_course.commands.figures

study: $(VENV)/ready            ## compare every fusion choice, conversion with units, pretraining and what to thaw (many hours on 2 cores; goes on where it stopped, and says so where older figures are of other clips or weights: move them away first)
	$(BIN)/speechllm bench fusion --out data/results/fusion.json
	$(BIN)/speechllm bench fusion --transcripts --out data/results/fusion-transcripts.json
	$(BIN)/speechllm bench fusion --loudness --out data/results/fusion-loudness.json
	$(BIN)/speechllm bench claim --out data/results/claim.json
	for s in pretrain towards whole sft; do $(BIN)/speechllm bench $$s --out data/results/$$s.json || exit 1; done
	$(BIN)/python -m speechllm_course.commands.figures

lab: $(VENV)/ready              ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and "Python 3.11.4 or newer is needed; run: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib  # bytecode on every core; pip compiles on one
	touch $@

clean:                          ## remove what make made
	rm -rf $(VENV) build dist runs *.egg-info
