# One command a purpose. `make` alone lists them.
# Needs Python 3.11 or newer, make and git; `make setup`, which every target runs first, installs the rest.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
NODES ?= 3
# For `make site` and `make plan`: which cluster, and what else ansible-playbook should be told.
INVENTORY ?= inventories/lab
ARGS ?=
QUERY ?=

CHECK = $(PYTHON) scripts/check.py
# Molecule and the playbooks look for ansible's other commands on PATH.
PLAYBOOK = PATH="$(CURDIR)/.venv/bin:$$PATH" ansible-playbook

.PHONY: help setup lab-up lab-down demo site plan rollback updates search models scrub bundle test lint test-unit sanity test-lab test-cuda molecule bench clean

help: ## List the targets
	@printf 'Usage: make TARGET [VARIABLE=value]\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' Makefile

setup: ## Install apt packages and .venv (nothing to do when they are there)
	@$(PYTHON) scripts/bootstrap.py

demo: setup ## A cluster of three nodes on this machine that answers a question [MODEL=file.gguf or hf://owner/repo/file, NODES=3]
	@.venv/bin/python demo/run.py --nodes $(NODES)

lab-up: setup ## Boot the lab's nodes on this machine [NODES=3]
	@$(PLAYBOOK) playbooks/lab_up.yml -e lab_nodes=$(NODES)

lab-down: setup ## Take the lab down; nothing of it stays
	@$(PLAYBOOK) playbooks/lab_down.yml

site: setup ## Bring a cluster to what its inventory says [INVENTORY=inventories/lab, ARGS='--check --diff']
	@$(PLAYBOOK) -i $(INVENTORY) playbooks/site.yml $(ARGS)

plan: setup ## Show what `make site` would place where [INVENTORY=inventories/lab, ARGS=...]
	@$(PLAYBOOK) -i $(INVENTORY) playbooks/plan.yml $(ARGS)

rollback: setup ## Go back to the release of llama.cpp that was current before [INVENTORY=inventories/lab]
	@$(PLAYBOOK) -i $(INVENTORY) playbooks/rollback.yml $(ARGS)

updates: setup ## Show which releases are on the nodes, and what is newer [INVENTORY=inventories/lab]
	@$(PLAYBOOK) -i $(INVENTORY) playbooks/updates.yml $(ARGS)

search: setup ## Search a hub for models, and see which fit the cluster [QUERY='qwen3 14b gguf' INVENTORY=inventories/lab]
	@$(PLAYBOOK) -i $(INVENTORY) playbooks/search.yml $(if $(QUERY),-e 'search_query="$(QUERY)"') $(ARGS)

models: setup ## Show which models are in the nodes' stores, who uses them, and since when [INVENTORY=inventories/lab]
	@$(PLAYBOOK) -i $(INVENTORY) playbooks/models.yml $(ARGS)

scrub: setup ## Hash all models and cached tensors again; what differs is taken away [INVENTORY=inventories/lab]
	@$(PLAYBOOK) -i $(INVENTORY) playbooks/scrub.yml $(ARGS)

bundle: setup ## Collect all that `make site` would fetch into one file, for a cluster without network [INVENTORY=inventories/lab]
	@$(PLAYBOOK) -i $(INVENTORY) playbooks/bundle.yml $(ARGS)

test: ## All checks, from lint to molecule [KEEP_GOING=1]
	@$(CHECK)

lint: ## ruff, mypy, yamllint, ansible-lint
	@$(CHECK) setup lint

test-unit: ## Tests that need no nodes
	@$(CHECK) setup unit

sanity: ## ansible-test sanity
	@$(CHECK) setup sanity

test-lab: ## Tests on real nodes
	@$(CHECK) setup lab

test-cuda: ## Whole builds with CUDA, Vulkan, OpenBLAS, and on the simulated EL host; not a part of `make test`, as they take an hour
	@$(CHECK) setup cuda

molecule: ## A cluster from nothing, another build of llama.cpp, and back
	@$(CHECK) setup molecule

bench: setup ## Measure: GGUF headers, estimates, plans, builds, fuzzing, whole runs; all or one part [ARGS='PART ...', ARGS=--help]
	@.venv/bin/python tests/bench/all.py $(ARGS)

clean: ## Remove .venv and what the tests and the demo left in the working tree (the lab: make lab-down)
	@rm -rf .venv .cache .ansible .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@rm -rf collections/ansible_collections/llamacpp/cluster/tests/output
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
