// A webhook receiver with nothing but Go's standard library (1.16 or newer).
//
//	SECRET=whsec_... PORT=8090 go run .
//
// EventPulse also sends X-EventPulse-Signature: sha256=<hex>, an HMAC-SHA256 over the raw body alone, keyed with
// the whole secret string, "whsec_" included. One of the two is enough; this one covers the id and the time as well.
package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	bodyBytesMax  = 1024 * 1024
	ageMax        = 5 * time.Minute
	rememberedMax = 10_000
)

type event struct {
	Type    string          `json:"type"`
	Payload json.RawMessage `json:"payload"`
}

// process is where your work goes. Return an error, and the sender tries again later.
func process(e event) error {
	if e.Type == "" {
		return errors.New("the event has no type")
	}
	return nil
}

type receiver struct {
	key  []byte
	seen *seen
}

func (rc *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		answer(w, http.StatusMethodNotAllowed, "POST only")
		return
	}
	// The signature is over bytes: parse the body and print it again, and it no longer matches.
	if r.ContentLength > bodyBytesMax {
		answer(w, http.StatusRequestEntityTooLarge, "body too large")
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, bodyBytesMax+1))
	if err != nil {
		// Said aloud, because net/http answers 200 for a handler that writes nothing, and 200 means processed.
		answer(w, http.StatusBadRequest, "body cut short")
		return
	}
	if len(body) > bodyBytesMax {
		answer(w, http.StatusRequestEntityTooLarge, "body too large")
		return
	}

	id := r.Header.Get("webhook-id")
	timestamp := r.Header.Get("webhook-timestamp")
	signatures := r.Header.Get("webhook-signature")
	if id == "" || timestamp == "" || signatures == "" {
		answer(w, http.StatusBadRequest, "missing header")
		return
	}
	seconds, err := strconv.ParseUint(timestamp, 10, 40)
	if err != nil {
		answer(w, http.StatusBadRequest, "bad timestamp")
		return
	}
	if !rc.signed(id, timestamp, body, signatures) {
		answer(w, http.StatusUnauthorized, "bad signature")
		return
	}
	// The window stops the replay of a recorded request after its id has been forgotten.
	age := time.Since(time.Unix(int64(seconds), 0))
	if age > ageMax || age < -ageMax {
		answer(w, http.StatusUnauthorized, "bad time")
		return
	}

	// Ids are looked at only now: a stranger must not be able to mark one as seen.
	switch rc.seen.begin(id) {
	case stateDuplicate:
		fmt.Printf("duplicate id=%s\n", id)
		answer(w, http.StatusOK, "duplicate")
		return
	case stateBusy:
		// The first copy may still fail, so the second is not told that all is well; it is sent again.
		w.Header().Set("Retry-After", "5")
		answer(w, http.StatusServiceUnavailable, "in progress")
		return
	}

	succeeded := false
	// Deferred, so that an id is let go even when process panics.
	defer func() { rc.seen.end(id, succeeded) }()
	var e event
	if err = json.Unmarshal(body, &e); err == nil {
		err = process(e)
	}
	if err != nil {
		fmt.Printf("failed id=%s %q\n", id, err)
		answer(w, http.StatusInternalServerError, "processing failed")
		return
	}
	succeeded = true
	fmt.Printf("received id=%s type=%q bytes=%d\n", id, e.Type, len(body))
	answer(w, http.StatusOK, "ok")
}

func (rc *receiver) signed(id, timestamp string, body []byte, signatures string) bool {
	mac := hmac.New(sha256.New, rc.key)
	io.WriteString(mac, id+"."+timestamp+".")
	mac.Write(body)
	expected := mac.Sum(nil)
	// Several signatures stand side by side while a secret is being rotated; unknown versions are passed over.
	for _, one := range strings.Split(signatures, " ") {
		if !strings.HasPrefix(one, "v1,") {
			continue
		}
		given, err := base64.StdEncoding.DecodeString(one[len("v1,"):])
		if err == nil && hmac.Equal(given, expected) {
			return true
		}
	}
	return false
}

func answer(w http.ResponseWriter, status int, text string) {
	if status == http.StatusRequestEntityTooLarge || status == http.StatusMethodNotAllowed {
		// What follows an unread body cannot be understood, so this connection ends.
		w.Header().Set("Connection", "close")
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(status)
	io.WriteString(w, text+"\n")
}

type state int

const (
	stateNew state = iota
	stateBusy
	stateDuplicate
)

// seen holds the ids of the last processed events, and of those being processed right now.
//
// This memory ends with the process and is not shared. With several processes, or where a repeat would cost money,
// insert the id under a unique key in your database, in the same transaction as the event's effect.
type seen struct {
	mu    sync.Mutex
	ids   map[string]state
	order []string // processed ids in a ring, so that the oldest can be forgotten
	next  int
}

func newSeen() *seen {
	return &seen{ids: make(map[string]state), order: make([]string, rememberedMax)}
}

func (s *seen) begin(id string) state {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state, found := s.ids[id]; found {
		return state
	}
	s.ids[id] = stateBusy
	return stateNew
}

func (s *seen) end(id string, succeeded bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !succeeded {
		delete(s.ids, id)
		return
	}
	delete(s.ids, s.order[s.next])
	s.order[s.next] = id
	s.next = (s.next + 1) % len(s.order)
	s.ids[id] = stateDuplicate
}

func decodeSecret(secret string) ([]byte, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil || !strings.HasPrefix(secret, "whsec_") || len(key) < 16 {
		return nil, errors.New("SECRET must read whsec_<base64>, as it was shown when the webhook was registered")
	}
	return key, nil
}

func setting(name, fallback string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return fallback
}

func main() {
	key, err := decodeSecret(os.Getenv("SECRET"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(64)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(setting("HOST", "127.0.0.1"), setting("PORT", "8090")))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	server := &http.Server{
		Handler:           &receiver{key: key, seen: newSeen()},
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       75 * time.Second,
	}

	stop, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		<-stop.Done()
		grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		server.Shutdown(grace)
	}()

	fmt.Printf("listening on %s\n", listener.Addr())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	<-finished
}
