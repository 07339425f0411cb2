# The whole of Tenon from a checkout. Everything is installed into .venv, all state lives in .tenon.
#
#   make train-and-deploy   train an adapter, prove it, serve it   MODEL= DATA= TEST= NAME= RECIPE= PORT= ARGS=
#   make test               the tests, on the real engine
#   make help               the rest

PYTHON ?= python3
DEVICE ?= auto
MODEL ?=
DATA ?=
TEST ?=
RECIPE ?=
PORT ?=
ARGS ?=
# Not from the environment, where Windows' Linux sets it to the machine's name.
NAME =

# Whoever sets it, as many containers do, has every process compile a thousand modules again.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
HOME_OF := $${TENON_HOME:-.tenon}
WORKS := $(BIN)/python -c 'import deploy.cli' 2>/dev/null
TENON := $(BIN)/tenon
# A variable's value as it was typed, for the shell; and that as an option, where there is one.
quoted = '$(subst ','\'',$(value $(1)))'
option = $(if $(value $(1)),--$(2) $(call quoted,$(1)))
STACK = $(call option,MODEL,model) $(call option,PORT,port)

.PHONY: help setup train-and-deploy up down status test test-kills lint format bench-lora-cpu check-lora-cpu bench-gateway bench-faults bench-slots bench-adapters bench-overhead bench-hangups bench-training bench-starts bench-processes check-bases clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: ## Make .venv and install what is needed (PYTHON=python3.12, DEVICE=cpu|gpu)
	@command -v '$(PYTHON)' >/dev/null || { echo "setup: $(PYTHON) is not installed; install Python 3.11 to 3.13" >&2; exit 1; }
	@PYTHON='$(if $(filter-out python3,$(PYTHON)),$(PYTHON))' '$(PYTHON)' deploy/setup.py --device '$(DEVICE)'

train-and-deploy: setup ## Train an adapter, prove that it beats the base, serve it
	@$(TENON) run $(STACK) $(call option,DATA,data) $(call option,TEST,test) \
		$(call option,NAME,name) $(call option,RECIPE,recipe) $(ARGS)

up: setup ## Start the stack in the background
	@$(TENON) up --detach $(STACK) $(ARGS)

down: ## Stop the stack
	@if $(WORKS); then $(BIN)/python -m deploy down; \
	elif [ -e "$(HOME_OF)/run/stack.json" ]; then \
		echo "down: .venv is gone or broken; run 'make setup' first" >&2; exit 1; fi

status: setup ## Say what runs
	@$(TENON) status

test: setup ## Run the tests, in four processes (ARGS="-n 0 -k name" runs some in one)
	@$(BIN)/pytest -n 4 --dist loadgroup $(ARGS)

test-kills: setup ## Kill a writer of the registry a thousand times, on SQLite and on PostgreSQL
	@TENON_TEST_KILLS=1000 TENON_TEST_REQUIRE_POSTGRES=1 $(BIN)/pytest tests/unit/registry/test_registry_durability.py -k killed $(ARGS)

lint: setup ## Check style, types and the import rule
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

format: setup ## Format the code
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench-lora-cpu: setup ## Measure LoRA on a CPU, vLLM's stock code beside ours
	@$(BIN)/python -m evalsuite.load.lora_cpu $(ARGS)

check-lora-cpu: setup ## Compare the answers of vLLM's stock LoRA code on a CPU with those of ours
	@$(BIN)/python -m evalsuite.load.lora_parity $(ARGS)

check-bases: setup ## Train and serve small bases of many families, and compare with PEFT (ARGS="--families llama glm4")
	@$(BIN)/python -m deploy.check_bases $(ARGS)

bench-gateway: setup ## Measure what the gateway costs, beside other proxies (ARGS="--litellm PATH --vllm-router PATH")
	@$(BIN)/python -m evalsuite.load.gateway $(ARGS)

bench-faults: setup ## Cut, kill and drain a gateway under load, and count what clients see
	@$(BIN)/python -m evalsuite.load.faults all $(ARGS)

bench-slots: setup ## Measure the time to the first token of many adapters on few slots, vLLM beside the gateway
	@$(BIN)/python -m evalsuite.load.slots_engine $(ARGS)

bench-adapters: setup ## Measure the base, one adapter and mixes on the device that is there, by engine setting
	@$(BIN)/python -m evalsuite.load.mixes $(ARGS)

bench-overhead: setup ## Measure what the gateway leaves of the engine's throughput (ARGS="--shape smollm2-135m")
	@$(BIN)/python -m evalsuite.load.overhead $(ARGS)

bench-hangups: setup ## Let clients hang up on a real engine, and see how soon it is rid of their requests
	@$(BIN)/python -m evalsuite.load.hangups $(ARGS)

bench-training: setup ## Measure training on a CPU, rows padded beside rows that share their starts
	@$(BIN)/python -m train.methods.bench $(ARGS)

bench-starts: setup ## Measure how soon an engine is ready, its core in a fresh interpreter beside a forked one
	@$(BIN)/python -m evalsuite.load.starts $(ARGS)

bench-processes: setup ## Measure how long a training's, a command's and a gateway's process take, as they are and without our care
	@$(BIN)/python -m deploy.bench_processes $(ARGS)

clean: ## Stop the stack; remove .venv, .tenon and caches
	@if $(WORKS); then $(BIN)/python -m deploy down >/dev/null && $(BIN)/python -m deploy --home .tenon down >/dev/null; \
	else [ ! -e "$(HOME_OF)/run/stack.json" ] && [ ! -e .tenon/run/stack.json ]; fi || { \
		echo "clean: nothing was removed, as a stack may run: stop it ('make setup', 'make down')," \
			"or delete the folder run in its home if nothing does" >&2; exit 1; }
	rm -rf .venv .venv.old .tenon *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
