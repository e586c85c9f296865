package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// The configuration that the API takes, in Firecracker's words. What a guest of processes has no use for
// is taken and kept, since GET /vm/config tells it.
type (
	machineConfig struct {
		VCPUCount  int `json:"vcpu_count"`
		MemSizeMiB int `json:"mem_size_mib"`
	}
	bootSource struct {
		KernelImagePath string `json:"kernel_image_path"`
		InitrdPath      string `json:"initrd_path,omitempty"`
		BootArgs        string `json:"boot_args,omitempty"`
	}
	drive struct {
		DriveID      string `json:"drive_id"`
		PathOnHost   string `json:"path_on_host"`
		IsRootDevice bool   `json:"is_root_device"`
		IsReadOnly   bool   `json:"is_read_only"`
	}
	nic struct {
		IfaceID       string   `json:"iface_id"`
		HostDevName   string   `json:"host_dev_name"`
		GuestMAC      string   `json:"guest_mac,omitempty"`
		RxRateLimiter *limiter `json:"rx_rate_limiter,omitempty"`
		TxRateLimiter *limiter `json:"tx_rate_limiter,omitempty"`
	}
	limiter struct {
		Bandwidth *tokenBucket `json:"bandwidth,omitempty"`
	}
	tokenBucket struct {
		Size         int64 `json:"size"`           // bytes
		RefillTime   int64 `json:"refill_time"`    // ms in which Size bytes are gained
		OneTimeBurst int64 `json:"one_time_burst"` // bytes, on top of the first Size
	}
	vmConfig struct {
		Machine    machineConfig `json:"machine-config"`
		BootSource bootSource    `json:"boot-source"`
		Drives     []drive       `json:"drives"`
		NICs       []nic         `json:"network-interfaces"`
	}
)

// Firecracker's words for a call at the wrong time.
var (
	errAfterStart  = errors.New("The requested operation is not supported after starting the microVM.")  //nolint:staticcheck // its words
	errBeforeStart = errors.New("The requested operation is not supported before starting the microVM.") //nolint:staticcheck // its words
)

// bodyLimit is Firecracker's limit of a request's body in bytes (--http-api-max-payload-size).
const bodyLimit = 51200

// routes is the API, as far as Wrenn's agent and its probe of VMMs use it. Unlike Firecracker it does not
// refuse unknown fields or malformed identifiers: the conformance suite of the real stand-in does that.
func (m *machine) routes() http.Handler {
	mux := http.NewServeMux()
	get := func(path string, answer func() any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			m.mu.Lock()
			defer m.mu.Unlock()
			reply(w, http.StatusOK, answer())
		})
	}
	get("/{$}", func() any {
		return map[string]string{"id": m.id, "state": string(m.state), "vmm_version": version, "app_name": "Firecracker"}
	})
	get("/version", func() any { return map[string]string{"firecracker_version": version} })
	get("/machine-config", func() any { return m.machine })
	get("/vm/config", func() any { return m.config() })
	call(mux, m, "PUT /machine-config", m.putMachineConfig)
	call(mux, m, "PUT /boot-source", m.putBootSource)
	call(mux, m, "PUT /drives/{id}", m.putDrive)
	call(mux, m, "PUT /network-interfaces/{id}", m.putNIC)
	call(mux, m, "PUT /entropy", func(struct{}) error { return m.beforeStart() })
	call(mux, m, "PUT /actions", func(b struct {
		ActionType string `json:"action_type"`
	}) error {
		return m.act(b.ActionType)
	})
	call(mux, m, "PATCH /vm", func(b struct {
		State string `json:"state"`
	}) error {
		return m.setState(b.State)
	})
	// A guest of processes has neither memory of its own nor devices whose state could be saved.
	mux.HandleFunc("PUT /snapshot/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, fmt.Errorf("The requested operation is not supported: procvmm has no %s %s.", r.Method, r.URL.Path)) //nolint:staticcheck // its words
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, fmt.Errorf("Invalid request method and/or path: %s %s.", r.Method, r.URL.Path)) //nolint:staticcheck // its words
	})
	return mux
}

// call adds a route whose body is a T. Calls are served one at a time, as by Firecracker.
func call[T any](mux *http.ServeMux, m *machine, pattern string, do func(T) error) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var body T
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyLimit)).Decode(&body); err != nil {
			refuse(w, fmt.Errorf("An error occurred when deserializing the json body of a request: %w.", err)) //nolint:staticcheck // its words
			return
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if err := do(body); err != nil {
			refuse(w, err)
			return
		}
		w.Header().Set("Server", "Firecracker API")
		w.WriteHeader(http.StatusNoContent)
	})
}

func refuse(w http.ResponseWriter, err error) {
	reply(w, http.StatusBadRequest, map[string]string{"fault_message": err.Error()})
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Server", "Firecracker API")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that has gone away misses nothing
}
