package agent

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/network"
	"wrenn/impl/sandbox"
	"wrenn/impl/sandbox/sandboxtest"
)

func TestN01_WithAllSlotsInUseACreateIsRefusedAtOnce(t *testing.T) {
	part, err := newNetworkPart(Config{Logger: slog.New(slog.DiscardHandler), ReadyNetworks: 3}, nil)
	require.NoError(t, err)
	for slot := network.Slot(1); slot <= network.MaxSlot; slot++ {
		require.NoError(t, part.pool.Claim(slot))
	}
	part.pool.Start()
	parts := sandboxtest.NewHost()
	manager, err := sandbox.NewManager(sandbox.Config{
		Dir: filepath.Join(t.TempDir(), "sandboxes"), Logger: slog.New(slog.DiscardHandler),
		Network: part, Disk: parts.Disk(), Memory: parts.Memory(), VMM: parts.VMM(), Guest: parts.Guest(),
	})
	require.NoError(t, err)
	h := &handler{manager: manager, networks: part}
	begun := time.Now()
	_, err = h.CreateSandbox(t.Context(), createRequest("one"))
	took := time.Since(begun)
	assert.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
	require.ErrorContains(t, err, "no free slot: all 32767 are in use")
	assert.Less(t, took, 100*time.Millisecond)
	assert.Empty(t, manager.List())
	require.NoError(t, manager.Close(context.WithoutCancel(t.Context()), true))
	require.NoError(t, part.pool.Close(context.WithoutCancel(t.Context())))
}

func TestN01_SettingsOfSlotsAreChecked(t *testing.T) {
	good := Config{Dir: "/d", ImageDir: "/i", Listen: "x", Token: "t", Logger: slog.New(slog.DiscardHandler), Slots: 32767}
	require.NoError(t, good.check())
	for _, bad := range []int{-1, 32768} {
		cfg := good
		cfg.Slots = bad
		require.ErrorContains(t, cfg.check(), "slots")
	}
	good.ReadyNetworks = -1
	require.ErrorContains(t, good.check(), "ready-networks")
}

func TestN06_WhatCannotBeReclaimedStaysClaimedAndCanBeTriedAgain(t *testing.T) {
	part, err := newNetworkPart(Config{Logger: slog.New(slog.DiscardHandler)}, nil)
	require.NoError(t, err)
	l := part.leftovers
	require.NoError(t, part.pool.Claim(1))
	require.ErrorIs(t, l.Claim(1), network.ErrSlotInUse, "a sandbox has it")
	require.NoError(t, l.Claim(2))
	require.ErrorIs(t, part.pool.Claim(2), network.ErrSlotInUse)
	require.NoError(t, l.Claim(2), "the next try")
	require.NoError(t, l.Release(2))
	require.NoError(t, part.pool.Claim(2))
	require.ErrorIs(t, l.Claim(2), network.ErrSlotInUse)
}
